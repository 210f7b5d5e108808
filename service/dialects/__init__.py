"""The protocols of other servers, so that their clients work here: other ways in, to the same queue and models."""
