"""Records, pixel digests, buckets, captions, the sharded item store, the stateless sampler."""
