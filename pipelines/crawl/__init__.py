"""Where pages come from: the sample crawl, Common Crawl, or one's own files. See `pipelines.crawl.sources.resolve`."""
