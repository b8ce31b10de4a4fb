"""What only a real GPU has: the rates that it is measured at."""


def test_rates_are_believable_and_memory_is_the_quicker(the_gpu):
    memory, copies = the_gpu.memory_rate(), the_gpu.copy_rate()
    assert 1e9 < copies < memory < 1e14
