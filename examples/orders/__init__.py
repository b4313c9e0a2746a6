"""An order over three services, with compensation."""
