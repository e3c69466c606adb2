"""The keys of a GGUF, and its header: what llama.cpp's converter writes for the same folder.

The library ``gguf`` makes the general keys (from the folder's name, its configuration and its
generation settings), the special tokens and the chat template from the small files of a checkpoint,
as it does for the converter. The keys of the model and the vocabulary, which the converter makes
itself, are made here: each with the converter's type and in its order, so that the headers are
equal byte for byte.

llama.cpp computes gpt-oss with constants of its own where the release has settings. A base with
others would load there and be another model; it is refused (``refuse_inexpressible``).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import GptOssConfig

from gptoss_tune.error_hints import missing_extra
from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.export.assets import GENERATION, copy_companions
from gptoss_tune.export.gguf.layout import GgufTensor
from gptoss_tune.export.merge.steps import merged_config
from gptoss_tune.files.atomic import to_json, write_text
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.harmony.tokenizer_file import SPLIT_PATTERN, open_tokenizer
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.names import ExpertFormat

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from tokenizers import Tokenizer

_PRE_TOKENIZER = "gpt-4o"
"""llama.cpp's name of how o200k cuts text."""
_SWIGLU = {"swiglu_limit": 7.0, "swiglu_alpha": 1.702}
_LOOKS_SPECIAL = re.compile(
    r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL
)
_ROTARY_BEYOND = ("attention_factor", "mscale", "mscale_all_dim")


@dataclass(frozen=True)
class Header:
    """The start of one file.

    Attributes:
        name: The file's name.
        start: Everything before the data, padded to where they begin.
        offsets: Where each of its tensors begins, in bytes from the start of the file.
        nbytes: Bytes of the whole file.
    """

    name: str
    start: bytes
    offsets: Mapping[str, int]
    nbytes: int


def require_gguf() -> None:
    """Refuse to write or to compare the keys of a GGUF without the library that makes them.

    Raises:
        MachineError: It is not installed; says how to.
    """
    said = missing_extra("gguf")
    if said is not None:
        raise MachineError(f"GGUF: {said}")


def refuse_inexpressible(base: Checkpoint) -> None:
    """Refuse a base that llama.cpp would read as another model, or not at all.

    Raises:
        CheckpointError: Lists every setting that a GGUF of gpt-oss has no place for.
    """
    config = GptOssConfig.from_dict(dict(base.config)).to_dict()
    faults = []
    if config.get("tie_word_embeddings"):
        faults.append("tie_word_embeddings is true; llama.cpp wants a head of its own")
    if not config.get("attention_bias", True):
        faults.append("attention_bias is false; llama.cpp wants the biases")
    kinds = config.get("layer_types") or []
    wanted = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(len(kinds))]
    if kinds != wanted:
        faults.append("layer_types are not sliding and full in turn, as llama.cpp computes them")
    for key, value in _SWIGLU.items():
        if (base.config.get(key) or value) != value:
            faults.append(f"{key} is {base.config[key]}; llama.cpp computes with {value}")
    rotary = config.get("rope_parameters") or {}
    faults += [
        f"{key} of its rotary embedding is {rotary[key]}; llama.cpp computes its own"
        for key in _ROTARY_BEYOND
        if rotary.get(key) is not None
    ]
    if faults:
        raise CheckpointError(
            f"{base.path}: a GGUF cannot hold it: {'; '.join(faults)}. Export it with --format "
            "bf16 or mxfp4, which transformers and vLLM read"
        )


def headers(
    base: Checkpoint,
    expert_format: ExpertFormat,
    name: str,
    tensors: Sequence[GgufTensor],
    completed: Mapping[str, bytes],
    *,
    stem: str,
    max_shard_size: int,
) -> list[Header]:
    """Return the header of each file of a GGUF.

    Args:
        base: What the merge starts from; its small files decide the keys.
        expert_format: Of the experts in the result.
        name: What the folder is called, from which the converter makes ``general.name``.
        tensors: In the order of the file.
        completed: Files that the base lacks, by name.
        stem: The file's name without ``.gguf``.
        max_shard_size: Bytes of tensors in one file at most.

    Raises:
        CheckpointError: The tokenizer is not gpt-oss's, or has more tokens than the model.
        MachineError: The library ``gguf`` is not installed.
    """
    require_gguf()
    import numpy as np
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter

    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "small" / (name or "model")
        small.mkdir(parents=True)
        config = merged_config(base, expert_format)
        write_text(small / "config.json", to_json(config))
        copy_companions(base, [], small, completed)
        arch = MODEL_ARCH_NAMES[MODEL_ARCH.GPT_OSS]
        splits = sum(tensor.nbytes for tensor in tensors) > max_shard_size
        writer = GGUFWriter(path=None, arch=arch, split_max_size=max_shard_size if splits else 0)
        for tensor in tensors:
            kind = GGMLQuantizationType[tensor.type]
            as_dtype = np.dtype(np.float32)  # read only where a shape is one of bytes
            writer.add_tensor_info(tensor.name, tensor.shape, as_dtype, tensor.nbytes, kind)
        _add_keys(writer, small, config, expert_format)
        files = _written(writer, Path(scratch) / f"{stem}.gguf")
    return files


def _written(writer: GGUFWriter, path: Path) -> list[Header]:
    """Return the headers of ``writer``, which it can only write to files."""
    listed = [
        (file.name, {name: info.nbytes for name, info in tensors.items()})
        for file, tensors in zip(writer.format_shard_names(path), writer.tensors, strict=True)
    ]
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    found = []
    for name, sizes in listed:
        start = path.with_name(name).read_bytes()
        start += bytes(-len(start) % writer.data_alignment)
        end, offsets = len(start), {}
        for tensor, nbytes in sizes.items():
            offsets[tensor] = end
            end += writer.ggml_pad(nbytes, writer.data_alignment)
        found.append(Header(name, start, offsets, end))
    return found


def _add_keys(
    writer: GGUFWriter, small: Path, config: dict[str, Any], expert_format: ExpertFormat
) -> None:
    """Add all keys to ``writer``, whose tensors are known, in the converter's order."""
    import gguf

    total, shared, experts, count = writer.get_total_parameter_count()
    metadata = gguf.Metadata.load(None, small, None, total)
    if metadata.name is None:
        metadata.name = small.name
    if metadata.size_label is None and total > 0:
        metadata.size_label = gguf.size_label(total, shared, experts, count)
    writer.add_type(gguf.GGUFType.MODEL)
    generation = read_object(small / GENERATION)
    if metadata.sampling_penalty_repeat is None:  # as the converter since the library's release
        metadata.sampling_penalty_repeat = generation.get("repetition_penalty")
    metadata.set_gguf_meta_model(writer)
    packed = expert_format == "mxfp4"
    kind = gguf.LlamaFileType.MOSTLY_MXFP4_MOE if packed else gguf.LlamaFileType.MOSTLY_BF16
    # Read as the converter reads it, whichever release of transformers wrote the file.
    _add_model(writer, GptOssConfig.from_dict(dict(config)).to_dict(), kind)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(writer, small, config["vocab_size"])


def _add_model(writer: GGUFWriter, config: dict[str, Any], kind: int) -> None:
    """Add the model's sizes, its attention and its rotary embedding."""
    import gguf

    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    rotary = config["rope_parameters"]
    if rotary.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rotary["factor"])
        writer.add_rope_scaling_orig_ctx_len(rotary["original_max_position_embeddings"])
        if rotary.get("beta_fast") is not None:
            writer.add_rope_scaling_yarn_beta_fast(rotary["beta_fast"])
        if rotary.get("beta_slow") is not None:
            writer.add_rope_scaling_yarn_beta_slow(rotary["beta_slow"])
    writer.add_rope_freq_base(rotary["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_file_type(kind)
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])


def _add_vocabulary(writer: GGUFWriter, small: Path, size: int) -> None:
    """Add tokens, merges, special tokens and chat template.

    Raises:
        CheckpointError: The tokenizer cuts text otherwise than o200k, or has more tokens.
    """
    import gguf

    file = small / "tokenizer.json"
    tokenizer = open_tokenizer(file)
    if not any(_regex(part) == SPLIT_PATTERN for part in _parts(tokenizer.pre_tokenizer)):
        raise CheckpointError(
            f"{file.name}: its pre_tokenizer is not the one of gpt-oss, and llama.cpp knows "
            "tokenizers by theirs; take tokenizer.json from the release"
        )
    tokens, types = _tokens(tokenizer, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(small, load_merges=True)
    if any(part.get("type") == "ByteLevel" for part in _parts(tokenizer.post_processor)):
        # As the converter since the library's release: such a tokenizer adds nothing to a text.
        others = {k: v for k, v in special.add_special_token.items() if k not in ("bos", "eos")}
        special.add_special_token = {"bos": False, "eos": False, **others}
    if isinstance(special.chat_template, list):  # in an order that is the same in every process
        special.chat_template.sort(key=lambda each: (each["name"] != "default", each["name"]))
    special.add_to_gguf(writer, quiet=True)
    names = writer.kv_data[0].get(gguf.Keys.Tokenizer.CHAT_TEMPLATES)
    if names is not None:
        names.value = sorted(names.value)


def _parts(part: Any) -> list[dict[str, Any]]:
    """Return what a part of a tokenizer is made of, as it stands in ``tokenizer.json``."""
    state = json.loads(part.__getstate__()) if part is not None else {}
    return state.get("pretokenizers") or state.get("processors") or [state]


def _regex(part: dict[str, Any]) -> str | None:
    """Return the expression by which a part cuts text, if it does."""
    return part.get("pattern", {}).get("Regex")


def _tokens(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[int]]:
    """Return the text of each token, and llama.cpp's type of it.

    Args:
        tokenizer: The base's.
        size: Rows of the embedding; what the tokenizer has no token for is padding.

    Raises:
        CheckpointError: It has more tokens, or two words for one.
    """
    from gguf import TokenType

    listed = tokenizer.get_vocab(with_added_tokens=True)
    texts = {place: text for text, place in listed.items()}
    if len(texts) < len(listed):
        twice = sorted(place for place, count in Counter(listed.values()).items() if count > 1)
        raise CheckpointError(
            f"tokenizer.json has two words for token {twice[0]}, a GGUF holds one; take it "
            "from where the base came from"
        )
    if texts and max(texts) >= size:
        raise CheckpointError(
            f"tokenizer.json has the token {max(texts)}, the model has {size:,} rows; take it from "
            "where the base came from"
        )
    added = tokenizer.get_added_tokens_decoder()
    tokens, types = [], []
    for place in range(size):
        text, kind = texts.get(place), TokenType.NORMAL
        if text is None:
            text, kind = f"[PAD{place}]", TokenType.UNUSED
        elif place in added:
            if not added[place].normalized:
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                text = tokenizer.decode(ids, skip_special_tokens=False)
            special = added[place].special or _LOOKS_SPECIAL.fullmatch(text) is not None
            kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
            text = text if special else text.replace("\u2581", " ")
        tokens.append(text)
        types.append(kind)
    return tokens, types
