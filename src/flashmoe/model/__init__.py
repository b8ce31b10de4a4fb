"""One token: the model's layers over the kernels, the trunk and the streamed experts."""
