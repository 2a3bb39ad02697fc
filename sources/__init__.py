"""Where frames come from: folders, videos and other people's recordings, read only."""
