"""Events as a training takes them: preprocessed, split, in batches."""
