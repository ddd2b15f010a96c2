"""benchsr: adversarial robustness benchmark for x4 image super-resolution."""
