// Package decoy answers whoever is not a client, as an ordinary web site does.
//
// There are three sites to choose from: a folder of files, another site behind
// a reverse proxy, and, when nothing was chosen, a placeholder page. The files
// and the error pages look like those of nginx behind a reverse proxy written
// in Go, which is a common sight (Traefik and Caddy are such proxies): the
// words and headers are nginx's, while the order of the headers, the "Etag"
// spelling and the answers to malformed HTTP are net/http's, which a handler
// cannot change.
//
// A request is answered when all of its body is here, within limits of size and
// time, as by an nginx that passes requests on: what is said of a request that
// may be a client's can be said only then, and others must not differ.
package decoy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// maxBody is the largest request body in bytes that is not refused with
	// 413 (nginx: client_max_body_size, 1 MB).
	maxBody = 1 << 20

	// bodyTimeout is the time for a whole request body. nginx allows 60 s
	// between two reads; a bound on the whole leaves nothing to trickle into.
	bodyTimeout = 60 * time.Second

	// sendTimeout is the time that the other side may take to accept one
	// buffer of the answer (nginx: send_timeout).
	sendTimeout = 60 * time.Second
)

// A Decoy is the web site that strangers see. It is an http.Handler and safe
// for concurrent use.
type Decoy struct {
	site  http.Handler
	other *site // nil: it is ours
	close func() error

	bodies, answers atomic.Int64 // that were cut
}

// Stats are counts since the start, except Exchanges and Kept, which are now.
type Stats struct {
	Exchanges  int   // with the other site
	Kept       int   // bytes of strangers' requests and answers
	Refused    int64 // requests for which all exchanges were in use for too long
	Crowded    int64 // strangers who were cut because they held most, or because more have long answers
	BodiesCut  int64 // requests whose body was not here in time
	AnswersCut int64 // answers of which nothing was taken for too long
}

// Stats returns the counts.
func (d *Decoy) Stats() Stats {
	st := Stats{BodiesCut: d.bodies.Load(), AnswersCut: d.answers.Load()}
	if s := d.other; s != nil {
		st.Exchanges, st.Refused = len(s.slots), s.refused.Load()
		st.Kept, st.Crowded = s.room.stats()
	}
	return st
}

// New returns the decoy that spec names: a URL (http or https) of another
// site, a folder, or, when spec is empty, the placeholder page, whose date of
// change is modified. An error names spec and what is wrong with it.
// log receives failures of the other site.
func New(spec string, modified time.Time, log *slog.Logger) (*Decoy, error) {
	switch {
	case spec == "":
		return &Decoy{site: placeholder(modified), close: func() error { return nil }}, nil
	case strings.Contains(spec, "://"):
		target, err := url.Parse(spec)
		if err != nil {
			return nil, fmt.Errorf("decoy %q is not a URL: %w", spec, errors.Unwrap(err))
		}
		if target.Scheme != "http" && target.Scheme != "https" {
			return nil, fmt.Errorf("decoy %q: the scheme must be http or https", spec)
		}
		if target.Host == "" || target.User != nil || target.RawQuery != "" || target.Fragment != "" {
			return nil, fmt.Errorf("decoy %q: want scheme://host or scheme://host/path and nothing else", spec)
		}
		return newSite(target, log), nil
	}
	root, err := os.OpenRoot(spec)
	if err != nil {
		return nil, fmt.Errorf("decoy folder cannot be opened (want a folder or a URL): %w", err)
	}
	if _, err := root.Stat("index.html"); err != nil {
		log.Warn("the decoy folder has no index.html: / answers 403 Forbidden", "folder", spec)
	}
	return &Decoy{site: folder(root), close: root.Close}, nil
}

// Close releases the folder or the connections to the other site.
func (d *Decoy) Close() error { return d.close() }

// ServeHTTP answers r. A peer that is slow to send or to receive is cut.
func (d *Decoy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b := &boundedWriter{ResponseWriter: w, rc: http.NewResponseController(w), cut: &d.answers}
	b.extend()
	if r.Body != nil && r.Body != http.NoBody {
		r = r.WithContext(r.Context()) // a copy: a handler does not change its request
		r.Body = timedBody{r.Body, &d.bodies}
	}
	switch {
	case !saneTarget(r):
		refuse(b, r, http.StatusBadRequest)
	case r.ContentLength > maxBody:
		refuse(b, r, http.StatusRequestEntityTooLarge)
	default:
		d.site.ServeHTTP(b, r)
	}
}

// receive writes r's body to to, and returns the status with which the request
// must be refused, or 0. It does not return if the body stands still or is cut:
// nginx then closes the connection without a word.
func receive(r *http.Request, rc *http.ResponseController, to io.Writer) (status int) {
	if r.Body == nil || r.Body == http.NoBody {
		return 0
	}
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout))
	n, err := io.Copy(to, io.LimitReader(r.Body, maxBody+1))
	switch {
	case n > maxBody:
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, errNoRoom):
		return http.StatusServiceUnavailable
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF):
		panic(http.ErrAbortHandler)
	case err != nil: // not HTTP
		return http.StatusBadRequest
	}
	_ = rc.SetReadDeadline(time.Time{})
	return 0
}

// refuse answers a request whose body was not read to its end, which takes the
// connection with it over HTTP/1: what is left of it must not be parsed as a request,
// which a proxy in front may have sent for somebody else. Over HTTP/2 that cannot be,
// and a proxy's connection is that of many others, whom net/http would cut off, too.
func refuse(w http.ResponseWriter, r *http.Request, status int) {
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
	errorPage(w, r, status)
}

// boundedWriter renews the deadline at each Write, so that a peer which takes
// a large file slowly is served, and one that takes nothing is cut.
type boundedWriter struct {
	http.ResponseWriter
	rc    *http.ResponseController
	cut   *atomic.Int64 // counts answers of which nothing is taken
	until time.Time
}

func (b *boundedWriter) extend() {
	b.until = time.Now().Add(sendTimeout)
	_ = b.rc.SetWriteDeadline(b.until)
}

func (b *boundedWriter) Write(p []byte) (int, error) {
	b.extend()
	n, err := b.ResponseWriter.Write(p)
	if err != nil && !time.Now().Before(b.until) { // over HTTP/2 the error does not say it
		b.cut.Add(1)
	}
	return n, err
}

// A timedBody counts when it has not come in time.
type timedBody struct {
	io.ReadCloser
	cut *atomic.Int64
}

func (b timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		b.cut.Add(1)
	}
	return n, err
}

// Unwrap lets http.ResponseController reach Flush.
func (b *boundedWriter) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// saneTarget tells whether nginx would look for a resource at all: it answers
// 400 to CONNECT, to "OPTIONS *", and to a path with a NUL or above the root.
func saneTarget(r *http.Request) bool {
	p := r.URL.Path
	if r.Method == http.MethodConnect || !strings.HasPrefix(p, "/") || strings.ContainsRune(p, 0) {
		return false
	}
	depth := 0
	for segment := range strings.SplitSeq(p, "/") {
		switch segment {
		case "", ".":
		case "..":
			depth--
		default:
			depth++
		}
		if depth < 0 {
			return false
		}
	}
	return true
}
