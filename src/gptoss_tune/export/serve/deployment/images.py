"""The container image of each server, pinned, and how its flags were checked.

No registry is asked: a tag stands here because public sources name it, and ``--image`` takes any
other, a digest too. The newest releases on PyPI are vLLM 0.33.0 and SGLang 0.5.23; no public source
was found that runs an image of those, so the newest whose image several do run is pinned, and the
flags of a bundle are checked against both the image's version and the newest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Image:
    """A pinned image.

    Attributes:
        reference: Name and tag.
        server: Server and version inside.
        source: Where the tag is known from, and when it was looked up.
        flags: How the flags that a bundle gives it were checked.
        driver: What the host's GPU driver has to be, as far as it is known.
        as_root: Whether it runs as root inside its container.
    """

    reference: str
    server: str
    source: str
    flags: str
    driver: str = ""
    as_root: bool = True


_RELEASE = re.compile(
    r"[a-z0-9][a-z0-9._:/-]*(?::[A-Za-z0-9_][\w.-]*|@sha256:[0-9a-f]{64})", re.ASCII
)


def image_mistake(image: str) -> str | None:
    """Return what is wrong with the image that a user asks for, or None."""
    if _RELEASE.fullmatch(image) and not image.endswith(":latest"):
        return None
    return (
        f"--image is '{image}'; expected a tag or a digest that names one release, such as "
        "vllm/vllm-openai:v0.31.0 or NAME@sha256:DIGEST"
    )


_CUDA_13 = "It is built for CUDA 13: NVIDIA driver 580 or newer"

VLLM = Image(
    "vllm/vllm-openai:v0.31.0",
    "vLLM 0.31.0",
    "public repositories that run this tag, October 2026; looked up 2026-11-28",
    "flags checked against the argument parsers of vLLM 0.31.0 and 0.33.0",
    _CUDA_13,
)
SGLANG = Image(
    "lmsysorg/sglang:v0.5.21",
    "SGLang 0.5.21",
    "public repositories that run this tag, October 2026; looked up 2026-11-28",
    "flags checked against the argument parsers of SGLang 0.5.21 and 0.5.23",
    _CUDA_13,
)
TRITON = Image(
    "nvcr.io/nvidia/tritonserver:26.07-vllm-python-py3",
    "Triton 26.07 with vLLM 0.24.0",
    "triton-inference-server/server, docs/introduction/compatibility.md, 2026-08-19",
    "engine arguments checked against AsyncEngineArgs of vLLM 0.24.0 and 0.33.0, flags against "
    "Triton's source",
    "It is built for CUDA 13.3 with NVIDIA driver 610",
)
TENSORRT_LLM = Image(
    "nvcr.io/nvidia/tensorrt-llm/release:1.2.1",
    "TensorRT-LLM 1.2.1",
    "a public repository that pulls this tag, and the release of that number on PyPI; looked up "
    "2026-11-28",
    "flags read in a commit of its source, as PyPI has only a placeholder of the package; nothing "
    "was started",
)
NIM = Image(
    "nvcr.io/nim/nvidia/model-free-nim:2.0.8",
    "NIM 2.0.8",
    "NVIDIA's quickstart of NIM LLM 2.0.8; looked up 2026-11-28",
    "flags checked against vLLM 0.31.0 and 0.33.0, not against the vLLM inside",
    as_root=False,
)
