"""What differs between the kinds of job; see :mod:`asymvae.pipeline.kinds.base`."""
