"""Ready-made tools: one that calls an endpoint through a sidecar (`tools.http`)."""

from __future__ import annotations

from steer_llm_sdk.tools.http import HttpTool, SidecarError

__all__ = ["HttpTool", "SidecarError"]
