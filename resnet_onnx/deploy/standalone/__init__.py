"""Files that are copied into every bundle, as they are; none of them may import anything of ours."""
