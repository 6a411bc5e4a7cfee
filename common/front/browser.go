package front

import (
	"net/http"
	"net/url"
)

// A browser is what the headers of a request say about who sends it. They are
// those of a script's fetch() to its own site, as the captured browsers send
// them; a censor sees only their compressed size, a CDN sees them whole.
type browser struct {
	agent   string
	always  http.Header // on every request
	overTLS http.Header // to https only, where browsers send these
}

// Chrome's version is that of the Chromium captured for this project: the
// newest Chrome ClientHello known is nearly its own. The brand list follows from
// the version by a rule in Chromium's source (user_agent_utils.cc). Firefox and
// Safari have the version of their newest ClientHello known.
var (
	chrome = browser{
		agent: "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36",
		always: http.Header{
			"Accept":          {"*/*"},
			"Accept-Language": {"en-US,en;q=0.9"},
		},
		overTLS: http.Header{
			"Accept-Encoding":    {"gzip, deflate, br, zstd"},
			"Priority":           {"u=1, i"},
			"Sec-Ch-Ua":          {`"Not:A-Brand";v="8", "Chromium";v="156", "Google Chrome";v="156"`},
			"Sec-Ch-Ua-Mobile":   {"?0"},
			"Sec-Ch-Ua-Platform": {`"Windows"`},
			"Sec-Fetch-Dest":     {"empty"},
			"Sec-Fetch-Mode":     {"cors"},
			"Sec-Fetch-Site":     {"same-origin"},
		},
	}
	firefox = browser{
		agent: "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:120.0) Gecko/20100101 Firefox/120.0",
		always: http.Header{
			"Accept":          {"*/*"},
			"Accept-Language": {"en-US,en;q=0.5"},
		},
		overTLS: http.Header{
			"Accept-Encoding": {"gzip, deflate, br"},
			"Sec-Fetch-Dest":  {"empty"},
			"Sec-Fetch-Mode":  {"cors"},
			"Sec-Fetch-Site":  {"same-origin"},
		},
	}
	safari = browser{
		agent: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/16.0 Safari/605.1.15",
		always: http.Header{
			"Accept":          {"*/*"},
			"Accept-Language": {"en-US,en;q=0.9"},
		},
		overTLS: http.Header{
			"Accept-Encoding": {"gzip, deflate, br"},
			"Sec-Fetch-Dest":  {"empty"},
			"Sec-Fetch-Mode":  {"cors"},
			"Sec-Fetch-Site":  {"same-origin"},
		},
	}
)

// dress adds to h the headers of a request to origin that the caller did not
// set: an empty slice under a name keeps that header away.
func (b *browser) dress(h http.Header, origin *url.URL, hasBody bool) {
	set := func(name string, values ...string) {
		if _, taken := h[name]; !taken {
			h[name] = values
		}
	}
	set("User-Agent", b.agent)
	for name, values := range b.always {
		set(name, values...)
	}
	if origin.Scheme == "https" {
		for name, values := range b.overTLS {
			set(name, values...)
		}
	}
	// In clear browsers offer only what old proxies can pass on.
	set("Accept-Encoding", "gzip, deflate")
	if hasBody {
		set("Origin", origin.Scheme+"://"+origin.Host)
		set("Content-Type", "application/octet-stream")
	}
}
