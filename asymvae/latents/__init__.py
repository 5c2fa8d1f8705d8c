"""Reading precomputed latents for training: :class:`asymvae.latents.dataset.LatentDataset`.

``parts`` says what there is to read, ``epoch`` and ``order`` in which order, ``rows`` and ``batches`` read it.
"""
