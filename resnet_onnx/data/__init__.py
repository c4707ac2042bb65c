"""Pictures in, batches out: data sets, transforms, labels, samples."""
