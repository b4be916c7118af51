"""Parts of networks: backbones, proposals, pooling, heads, losses."""
