"""Folders of CLIP, SigLIP and SigLIP 2 in the layout of stock `transformers`: whatever its classes write.

Weights are read by the stock classes, as tensors only: code in a checkpoint never runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dlip.common.errors import UserError, is_out_of_memory
from dlip.common.text import one_line
from dlip.data.stock_tokenizer import StockTokenizer
from dlip.models.dual_encoder import FAMILIES, DualEncoder

CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
"""`model_type` -> stock class."""


def read_dual_encoder(folder: Path, model_type: str) -> DualEncoder:
    """Read a folder with config.json, weights, tokenizer and image processor, in eval mode and fp32, on the CPU.

    Raises UserError where one of them is missing or damaged, or where the weights do not fit the configuration.
    """
    import transformers

    tokenizer = StockTokenizer.load(folder, fixed_length=model_type != "clip")
    with quiet_library():
        try:
            image_processor = transformers.AutoImageProcessor.from_pretrained(
                folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
            model, found = getattr(transformers, CLASSES[model_type]).from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # the library raises many types
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{folder} cannot be read as a {CLASSES[model_type]} with its image processor "
                f"({one_line(str(error))[:300]}); copy it again"
            ) from error
    if (tokens := len(tokenizer.stock)) > (vocabulary := model.config.text_config.vocab_size):
        raise UserError(f"the tokenizer of {folder} has {tokens} tokens, its model {vocabulary}; copy the model's own")
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{folder} lacks weights of a {CLASSES[model_type]}, such as {missing[0]}; copy it again")
    if wrong := [name for name, tensor in model.named_parameters() if not tensor.isfinite().all()]:
        raise UserError(f"{folder} has non-finite values in {wrong[0]}; use another copy of it")
    try:
        return FAMILIES[model_type](model, tokenizer, image_processor).eval()
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


@contextmanager
def quiet_library() -> Iterator[None]:
    """Hide the progress bars and warnings that `transformers` prints while it reads a checkpoint."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
