"""Reports for people: HTML pages, films, numbers of driven episodes."""
