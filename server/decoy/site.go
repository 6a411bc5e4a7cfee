package decoy

import (
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

const (
	// siteTimeout is how long the other site may take to accept a connection
	// and to begin its answer (nginx: proxy_connect_timeout and
	// proxy_read_timeout, 60 s; less, since a probe may wait for it).
	siteTimeout = 30 * time.Second

	// siteConns bounds the connections to the other site. More requests than
	// that wait for their turn.
	siteConns = 64

	// siteComplaint is the least time between two log lines about a site that
	// fails: strangers decide how often it is asked.
	siteComplaint = time.Minute
)

// newSite returns a reverse proxy to target. The other site learns nothing of
// who asked.
func newSite(target *url.URL, log *slog.Logger) *Decoy {
	transport := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: siteTimeout}).DialContext,
		TLSHandshakeTimeout:   siteTimeout,
		ResponseHeaderTimeout: siteTimeout,
		IdleConnTimeout:       siteTimeout,
		MaxConnsPerHost:       siteConns,
		MaxIdleConnsPerHost:   siteConns,
		ForceAttemptHTTP2:     true,
		// The stranger's Accept-Encoding goes through, and so does the answer.
		DisableCompression: true,
	}
	complaint := rate.Sometimes{Interval: siteComplaint}
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(target)
			// A connection that changed its protocol would have no bounds.
			pr.Out.Header.Del("Connection")
			pr.Out.Header.Del("Upgrade")
		},
		ModifyResponse: func(resp *http.Response) error {
			// Both would send the stranger to the other site itself.
			resp.Header.Del("Alt-Svc")
			if l := resp.Header.Get("Location"); l != "" {
				resp.Header.Set("Location", relocate(l, target))
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			// A stranger who went away is no failure of the site.
			if r.Context().Err() == nil {
				complaint.Do(func() {
					log.Warn("the decoy site does not answer: strangers see 502 Bad Gateway", "addr", target.Host, "err", err)
				})
			}
			clear(w.Header())
			errorPage(w, r, http.StatusBadGateway)
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	site := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A body without a length is cut at the limit; the site sees it fail.
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		proxy.ServeHTTP(w, r)
	})
	return &Decoy{site: site, close: func() error {
		transport.CloseIdleConnections()
		return nil
	}}
}

// relocate makes a Location within target one within this server.
func relocate(location string, target *url.URL) string {
	base := target.Scheme + "://" + target.Host + strings.TrimSuffix(target.Path, "/")
	rest, ok := strings.CutPrefix(location, base)
	if !ok || rest != "" && rest[0] != '/' && rest[0] != '?' {
		return location
	}
	if !strings.HasPrefix(rest, "/") {
		rest = "/" + rest
	}
	return rest
}
