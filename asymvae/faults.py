"""Expected errors, as values: what can be wrong with one sample, or with the shard that holds it.

A fault becomes a row of ``errors/``. Codes are stable (jobs retry and count by them), and messages come from
the table below, filled with numbers of our own alone: no path, host, address or exception text reaches a row,
so that the same bad sample gives the same bytes on every machine.

What is nobody's fault but the infrastructure's (a time-out, a full disk) is an exception and never comes here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

# code -> (stage, message)
FAULTS: Final[dict[str, tuple[str, str]]] = {
    # the shard itself: rows with a null index
    "shard_empty": ("read", "the file holds no bytes"),
    "tar_truncated": ("read", "the archive ends before its end-of-archive blocks, at byte {offset}"),
    "tar_corrupt": ("read", "the header at byte {offset} is not a tar header; what follows it is not read"),
    "tar_trailing_data": ("read", "there is data after the archive's end, at byte {offset}"),
    "gzip_corrupt": ("read", "the compressed stream is damaged or cut after {offset} bytes of the archive"),
    "parquet_unreadable": ("read", "the file is not a readable Parquet file"),
    "parquet_corrupt": ("read", "row group {row_group} is damaged; its rows from there on are lost"),
    "latents_column": ("read", "the file has no column '{column}', or not of the type that is read as latents"),
    "latents_unscaled": ("read", "the file doesn't say how its latents are scaled; set latents.scaling"),
    # a sample, while it is read
    "duplicate_key": ("read", "the key came before in this shard; the first sample of that key is kept"),
    "missing_key": ("read", "the key column is null"),
    "missing_image": ("read", "the sample has no image"),
    "missing_mask": ("read", "the sample has no mask"),
    "missing_given": ("read", "the sample has no filled image, which inpaint.method 'given' needs"),
    "missing_original": ("read", "no image of this key is among the originals"),
    "missing_latents": ("read", "the row's latents or their shape are null"),
    "latents_shape": ("read", "the row has {values} numbers, which are no latents of {shape}"),
    "field_too_large": ("read", "field '{field}' has {size} bytes; the most is {limit}"),
    "field_wrong_type": ("read", "field '{field}' is neither bytes, {{bytes, path}} nor a URL"),
    "url_not_found": ("read", "the URL in field '{field}' answers that there is no such object"),
    "url_refused": ("read", "the URL in field '{field}' is not of a kind that is read from this shard"),
    "url_denied": ("read", "a web server answers {status} to the URL in field '{field}'"),
    "url_too_large": ("read", "what the URL in field '{field}' names has more than {limit} bytes"),
    # a sample, while its bytes become pixels
    "image_empty": ("prepare", "the image has no bytes"),
    "image_undecodable": ("prepare", "the bytes are no image of a known format, or a damaged one"),
    "image_truncated": ("prepare", "the image file ends before its last pixel"),
    "image_too_large": ("prepare", "the image has {pixels} pixels; max_pixels is {limit}"),
    "image_unsupported": ("prepare", "images of mode '{mode}' can't be made 8-bit sRGB without loss of meaning"),
    "mask_empty": ("prepare", "the mask has no bytes"),
    "mask_undecodable": ("prepare", "the mask's bytes are no image of a known format, or a damaged one"),
    "mask_truncated": ("prepare", "the mask file ends before its last pixel"),
    "mask_too_large": ("prepare", "the mask has {pixels} pixels; max_pixels is {limit}"),
    "mask_unsupported": ("prepare", "a mask of mode '{mode}' has no clear meaning"),
    "mask_aspect": ("prepare", "the mask is {mask_width}x{mask_height} and the image {width}x{height}"),
    "given_undecodable": ("prepare", "the filled image's bytes are no image of a known format, or a damaged one"),
    "given_size": ("prepare", "the filled image is {given_width}x{given_height} and the image {width}x{height}"),
    "json_invalid": ("prepare", "the sample's json is no JSON object, or what it holds under 'asymvae' is none"),
    "override_unknown": (
        "prepare",
        "the json's 'asymvae' has a key that inpaint.method doesn't take; it takes {known}",
    ),
    "override_out_of_range": ("prepare", "the json's '{field}' is not {range}"),
    "missing_prompt": ("prepare", "the sample has no prompt, and inpaint.diffusion.prompt asks for it"),
    "image_too_small": ("prepare", "the image is {width}x{height}, which covers no bucket"),
    "latents_channels": ("prepare", "the latents have {channels} channels, and the model's have {wanted}"),
    "original_size": ("prepare", "the original is {width}x{height}, and the latents are of one of {wanted}"),
    "placement_invalid": ("prepare", "the row's size, crop and latents don't agree"),
    # a sample, on the device and after
    "latents_non_finite": ("encode", "the encoder's output has values that are not finite"),
    "latents_overflow": ("encode", "the encoder's output has values beyond what {dtype} can hold"),
    "fill_not_converged": ("inpaint", "the fill did not reach its tolerance within {iterations} iterations"),
    "non_finite": ("decode", "the network's output has values that are not finite"),
    "out_of_memory": ("device", "the image's {width}x{height} pixels don't fit the device's memory, even alone"),
    "image_format_limit": ("finish", "{format} can't hold an image of {width}x{height}"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One expected error. ``code`` is a key of :data:`FAULTS`; ``values`` fill its message."""

    code: str
    values: dict[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.code not in FAULTS:
            raise ValueError(f"unknown fault code {self.code!r}; add it to asymvae.faults.FAULTS")

    @property
    def stage(self) -> str:
        """read | prepare | encode | inpaint | decode | device (any step on it) | finish"""
        return FAULTS[self.code][0]

    @property
    def message(self) -> str:
        return FAULTS[self.code][1].format(**self.values)
