# core's own tests: tests/test_*.c that need nothing but core, so they also run where only core does (tools/cross).
set(CORE_TESTS kernels ladder ladder_golden window adamw gate basis dtype sample plugin wire logprobs conversation)
