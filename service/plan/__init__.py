"""`volo plan`: how many devices and HTTP workers a rate and a latency take, by simulation from measured costs."""
