"""`calorefine report`: one page on a run of the pipeline, from the weights to observables with their uncertainty."""
