"""What runs a model on one library without this program: files that are copied into a bundle, as they are.

Each has a class ``Engine(file, settings, model)``, whose arguments are parts of ``bundle.json``: it sets the library as
the adapter of the runtime did when it was measured. ``run(array)`` returns the scores, [picture, class], and may be
called from as many threads at a time as there are streams. None of them may import anything of ours.
"""
