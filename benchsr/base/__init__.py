"""What everything stands on: errors, files, downloads, schemas, random draws, inference, text and drawing."""
