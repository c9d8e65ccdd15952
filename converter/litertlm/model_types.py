"""The engine's words for what a TFLite model in a bundle is there for."""

NETWORK = "tf_lite_prefill_decode"
EMBEDDER = "tf_lite_embedder"
DRAFTER = "tf_lite_mtp_drafter"
