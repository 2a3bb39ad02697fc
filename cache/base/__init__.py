"""What everything stands on: errors, where home is, files, paths and sizes as users write them."""
