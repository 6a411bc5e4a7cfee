package front

import (
	"cmp"
	_ "embed"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A browser is what its HTTP says about who sends a request. The headers are
// those of a script's fetch() to its own site; a censor sees only their
// compressed size, a CDN sees them whole.
type browser struct {
	agent   string
	overTLS http.Header // to https only, beside what all browsers send there: see dress

	// order is that of the headers, spelled as in HTTP/1.1. Content-Type
	// stands for all that a script sets.
	order []string

	// onlyH2 are the headers that are not sent over HTTP/1.1, in small letters.
	onlyH2 []string

	// feeds says that over HTTP/2 a script's fetch() may send a body that is
	// written bit by bit. Its head lacks Content-Length, and nothing else differs.
	feeds bool

	h2 h2Look
}

//go:generate go -C ../../test run ./fingerprint/record -o ../common/front/chrome.json chromium
//go:generate go -C ../../test run ./fingerprint/record -o ../common/front/firefox.json firefox

var (
	//go:embed chrome.json
	chromeFile []byte
	//go:embed firefox.json
	firefoxFile []byte
)

// These are the browsers that can be imitated. Chrome and Firefox are recorded, and
// test/fingerprint compares them with the real ones. Safari is 17.0 on macOS as
// curl-impersonate has published it, in tests/signatures/safari_17.0_macOS.yaml:
// preface, pseudo-headers and the headers of a page's GET. The places of what
// only a POST has, and the weight, have not been seen.
var (
	chromeRecorded  = builtIn(chromeFile)
	firefoxRecorded = builtIn(firefoxFile)

	chrome  = chromeRecorded.browser
	firefox = firefoxRecorded.browser
	safari  = browser{
		agent: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.0 Safari/605.1.15",
		overTLS: http.Header{
			"Accept-Encoding": {"gzip, deflate, br"},
		},
		order: []string{
			"Host", "Accept", "Content-Type", "Origin", "Sec-Fetch-Site", "Cookie", "Accept-Encoding", "Content-Length",
			"Transfer-Encoding", "Sec-Fetch-Mode", "User-Agent", "Referer", "Accept-Language", "Sec-Fetch-Dest", "Connection",
		},
		h2: h2Look{
			settings: []http2.Setting{
				{ID: http2.SettingEnablePush, Val: 0},
				{ID: http2.SettingInitialWindowSize, Val: 4 << 20},
				{ID: http2.SettingMaxConcurrentStreams, Val: 100},
			},
			connWindow: 10 << 20,
			pseudo:     []string{":method", ":scheme", ":path", ":authority"},
			weight:     http2.PriorityParam{Weight: 254},
		},
	}
)

// dress adds to h the headers of a request to origin that the caller did not
// set: an empty slice under a name keeps that header away. An empty bodyType
// stands for none.
func (b *browser) dress(h http.Header, origin *url.URL, bodyType string) {
	set := func(name string, values ...string) {
		if _, taken := h[name]; !taken {
			h[name] = values
		}
	}
	set("User-Agent", b.agent)
	set("Accept", "*/*")
	set("Accept-Language", "en-US,en;q=0.9")
	if origin.Scheme == "https" {
		set("Sec-Fetch-Dest", "empty")
		set("Sec-Fetch-Mode", "cors")
		set("Sec-Fetch-Site", "same-origin")
		for name, values := range b.overTLS {
			set(name, values...)
		}
	}
	// In clear browsers offer only what old proxies can pass on.
	set("Accept-Encoding", "gzip, deflate")
	// The page whose script this would be is the site's first.
	set("Referer", origin.Scheme+"://"+origin.Host+"/")
	set("Origin", origin.Scheme+"://"+origin.Host)
	if bodyType != "" {
		set("Content-Type", bodyType)
	}
}

// A fieldOrder gives each header of a browser, by its name in small letters,
// its place and its spelling in HTTP/1.1.
type fieldOrder map[string]fieldPlace

// A fieldPlace is a header's place in a head, and its spelling in HTTP/1.1.
type fieldPlace struct {
	rank  int // pseudo-headers have negative ones
	spelt string
}

// fieldOrder is the order in which the browser's heads have their fields.
func (b *browser) fieldOrder() fieldOrder {
	o := make(fieldOrder)
	for i, name := range b.h2.pseudo {
		o[name] = fieldPlace{rank: i - len(b.h2.pseudo)}
	}
	for i, name := range b.order {
		o[strings.ToLower(name)] = fieldPlace{i, name}
	}
	return o
}

// rank is the place of the header name, in small letters.
func (o fieldOrder) rank(name string) int {
	place, known := o[name]
	if !known {
		place = o["content-type"]
	}
	return place.rank
}

// sort puts the fields of a head, their names in small letters, in order.
func (o fieldOrder) sort(fields []hpack.HeaderField) {
	slices.SortStableFunc(fields, func(a, b hpack.HeaderField) int {
		if c := cmp.Compare(o.rank(a.Name), o.rank(b.Name)); c != 0 {
			return c
		}
		// The implementation's order is a map's, and so is what a CDN would see.
		return cmp.Compare(a.Name, b.Name)
	})
}
