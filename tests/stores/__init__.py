"""Object stores, against emulators that the tests start themselves."""
