package carrier

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/wire"
)

// An observer is a network that writes down what passes.
type observer struct {
	http.RoundTripper // the network, or something in front of it
	*network

	mu   sync.Mutex
	seen []observed // guarded by mu
}

type observed struct {
	at     time.Time
	path   string
	body   []byte
	header http.Header
	answer *answer // nil if none came
}

func (o *observer) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	req.Body.Close()
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	i := len(o.seen)
	o.seen = append(o.seen, observed{at: time.Now(), path: req.URL.Path, body: body})
	o.mu.Unlock()
	req.Body = io.NopCloser(bytes.NewReader(body))
	resp, err := o.RoundTripper.RoundTrip(req)
	if err == nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.seen[i].header = resp.Header
		if cut, ok := resp.Body.(*cutBody); ok {
			o.seen[i].answer = cut.ReadCloser.(*closer).ReadCloser.(*answerReader).answer
		} else {
			o.seen[i].answer = resp.Body.(*closer).ReadCloser.(*answerReader).answer
		}
	}
	return resp, err
}

// since returns what was seen from the n-th exchange on.
func (o *observer) since(n int) []observed {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.seen[n:])
}

// written returns an answer's writes.
func (o *observed) written() []chunk {
	if o.answer == nil {
		return nil
	}
	o.answer.mu.Lock()
	defer o.answer.mu.Unlock()
	return slices.Clone(o.answer.chunks)
}

// observe opens a session whose exchanges are seen. cut may be nil.
func (w *world) observe(mode Mode, cut func(*network) http.RoundTripper) (*observer, *Client, *Session) {
	o := &observer{RoundTripper: w.net, network: w.net}
	if cut != nil {
		o.RoundTripper = cut(w.net)
	}
	client := w.dial(mode, func(cfg *ClientConfig) { cfg.Transport = o })
	<-client.Ready()
	return o, client, <-w.accepted
}

// opened counts the bytes of a body's datagrams and those of its padding.
func opened(t *testing.T, key *wire.Key, body []byte) (datagrams, padding int) {
	buf := make([]byte, wire.BufferSize)
	for r := bytes.NewReader(body); ; {
		u, err := key.Next(r, buf)
		if err != nil {
			return datagrams, padding
		}
		if u.Kind == wire.RecordKind {
			datagrams += len(u.Payload)
			continue
		}
		var h wire.Head
		if err := h.Parse(u.Payload); err != nil {
			t.Fatal(err)
		}
		padding += len(u.Payload) - len(h.Append(nil))
	}
}

// spread says how many values there are, and how often the most frequent one.
func spread[T comparable](values []T) (kinds, most int) {
	counts := make(map[T]int)
	for _, v := range values {
		counts[v]++
		most = max(most, counts[v])
	}
	return len(counts), most
}

// What is rounded to one size cannot be told apart, however often it is seen,
// and nothing has the same length often.
func TestBlurHides(t *testing.T) {
	firsts := make(map[int]bool)
	for range 30 {
		b := newBlur()
		totals := func(n int) (all []int) {
			for range 1000 {
				b.saved = maxPadding
				all = append(all, n+b.pad(n))
			}
			return all
		}
		firsts[b.rounded(0)] = true
		for _, n := range []int{0, 60, 130, 600, 1500, 3000, maxPadded} {
			size := b.rounded(n)
			if size < n || float64(size) > max(72, 1.8*float64(n)+1) {
				t.Errorf("%d bytes are rounded up to %d", n, size)
			}
			all := totals(n)
			if least, most := slices.Min(all), slices.Max(all); least < size || most >= size+max(size/4, leastNoise) {
				t.Errorf("%d bytes, rounded up to %d, become %d to %d", n, size, least, most)
			}
			if kinds, most := spread(all); kinds < min(size/8, 300) || most > 60 {
				t.Errorf("%d bytes: 1000 bodies have %d lengths, one of them %d times", n, kinds, most)
			}
		}
		// The neighbours of a size that is exact show nothing of it.
		exact := b.rounded(700)
		if b.rounded(exact-1) != exact || b.rounded(exact-exact/4) != exact {
			t.Errorf("%d to %d bytes are rounded up to %d to %d", exact-exact/4, exact-1, b.rounded(exact-exact/4), b.rounded(exact-1))
		}
		if b.pad(maxPadded+1) != 0 {
			t.Error("a large body is padded")
		}
	}
	if len(firsts) < 10 {
		t.Errorf("30 sessions round to %d different sizes at first", len(firsts))
	}
}

// The largest head and the most padding fit into a unit: there is no larger one.
func TestPaddedHeadFits(t *testing.T) {
	var largest wire.Set
	for i := range uint64(wire.MaxSpans) {
		at := wire.MaxNumber / wire.MaxSpans * (i + 1)
		largest.Spans = append(largest.Spans, wire.Span{First: at - at/1000, End: at})
	}
	h := wire.Head{
		Exchange: wire.MaxNumber, Time: 1<<32 - 1, Echo: 1<<32 - 2, Echoes: true, Delay: time.Hour,
		Acks: largest, Ended: largest, Hold: maxHold, Limit: maxStream, Stream: maxAge, Quiet: maxHold,
		Window: wire.MaxNumber, Backlog: 1 << 30, Sent: wire.MaxNumber, Close: wire.CloseRoom,
	}
	size := len(h.Append(nil))
	for range 1000 {
		b := newBlur()
		for n := range 64 {
			if pad := b.pad(maxPadded - 64*n); size+pad > wire.MaxPlaintext {
				t.Fatalf("a head of %d bytes and %d of padding", size, pad)
			}
			b.saved = maxPadding
		}
	}
}

// Whatever a transfer's writes are like, padding is at most 5 % of it.
func TestBlurIsBounded(t *testing.T) {
	for _, size := range []int{100, 600, 1400, 2800, maxPadded, maxPadded + 1, 100 << 10} {
		for _, rate := range []int{125e3, 12.5e6, 60e6} { // bytes per second
			synctest.Test(t, func(t *testing.T) {
				b := newBlur()
				const total = 10 << 20
				padding := 0
				for moved := 0; moved < total; moved += size {
					padding += b.pad(size)
					time.Sleep(time.Duration(float64(size) / float64(rate) * float64(time.Second)))
				}
				if padding > total/40 { // as much may come from the other side
					t.Errorf("%d bytes at a time, %d a second: %.1f %% of padding", size, rate, 100*float64(padding)/total)
				}
				if size > maxPadded && padding > 0 {
					t.Errorf("%d bytes at a time are padded", size)
				}
			})
		}
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBlur()
		for range 1000 { // a conversation
			if b.pad(600) == 0 {
				t.Fatal("a write at a low rate is not padded")
			}
			time.Sleep(time.Second)
		}
		for b.pad(600) > 0 {
			continue
		}
		b.moved(1 << 20)
		if b.pad(600) == 0 {
			t.Error("what comes from the other side earns nothing")
		}
	})
}

// A thousand bodies that carry the same thing have many lengths, in both
// directions and both modes.
func TestSizesAreSpread(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream} {
		for _, size := range []int{20, 514 + 60} { // an acknowledgement, a cell of tor's
			t.Run(fmt.Sprintf("%s/%d", mode, size), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					w.net.set(always(near()))
					o, client, session := w.observe(mode, nil)
					time.Sleep(time.Minute)
					before := len(o.since(0))
					text := strings.Repeat("x", size)
					for range 1000 {
						say(t, client.Conn(), session.Conn(), text)
						time.Sleep(time.Second)
						say(t, session.Conn(), client.Conn(), text)
						time.Sleep(time.Second)
					}
					var up, down []int
					for _, e := range o.since(before) {
						if n, _ := opened(t, session.link.receive, e.body); n > 0 {
							up = append(up, len(e.body))
						}
						for _, c := range e.written() {
							if n, _ := opened(t, session.link.send, c.b); n > 0 {
								down = append(down, len(c.b))
							}
						}
					}
					for _, d := range []struct {
						name string
						all  []int
					}{{"up", up}, {"down", down}} {
						if len(d.all) < 950 {
							t.Fatalf("%s: %d bodies", d.name, len(d.all))
						}
						kinds, most := spread(d.all)
						t.Logf("%s: %d bodies of %d lengths from %d to %d, the most frequent %d times",
							d.name, len(d.all), kinds, slices.Min(d.all), slices.Max(d.all), most)
						if kinds < 40 || most > len(d.all)/20 {
							t.Errorf("%s: %d bodies have %d lengths, one of them %d times", d.name, len(d.all), kinds, most)
						}
					}
				})
			})
		}
	}
}

// A transfer pays next to nothing for padding.
func TestPaddingCostsLittle(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream} {
		for _, pause := range []time.Duration{0, 11 * ms} { // as fast as can be; 1 Mbit/s
			t.Run(fmt.Sprintf("%s/%v", mode, pause), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					w.net.set(always(near()))
					o, client, session := w.observe(mode, nil)
					const n = 3000
					for _, d := range [][2]*Conn{{client.Conn(), session.Conn()}, {session.Conn(), client.Conn()}} {
						go func() {
							for range n {
								d[0].WriteTo(noise[:1400], nil)
								time.Sleep(pause)
							}
						}()
						buf := make([]byte, wire.RecordRoom)
						for range n {
							if _, _, err := d[1].ReadFrom(buf); err != nil {
								t.Fatal(err)
							}
						}
					}
					datagrams, padding := 0, 0
					for _, e := range o.since(1) {
						d, p := opened(t, session.link.receive, e.body)
						datagrams, padding = datagrams+d, padding+p
						for _, c := range e.written() {
							d, p := opened(t, session.link.send, c.b)
							datagrams, padding = datagrams+d, padding+p
						}
					}
					t.Logf("%d bytes of padding for %d: %.2f %%", padding, datagrams, 100*float64(padding)/float64(datagrams))
					if most := []int{100, 25}[min(pause, 1)]; padding > datagrams/most {
						t.Errorf("%d bytes of padding for %d of datagrams", padding, datagrams)
					}
				})
			})
		}
	}
}

// An idle session costs little. What HTTP/2 and TLS add is measured by
// test/bench.
func TestIdleBytes(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream} {
		t.Run(string(mode), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.net.set(always(near()))
				o, _, _ := w.observe(mode, nil)
				time.Sleep(5 * time.Minute) // to learn how long answers may be silent
				before := len(o.since(0))
				const minutes = 60
				time.Sleep(minutes * time.Minute)
				bytes, requests := 0, 0
				for _, e := range o.since(before) {
					requests++
					bytes += len(e.body)
					for _, c := range e.written() {
						bytes += len(c.b)
					}
				}
				t.Logf("%d requests and %d bytes of bodies an hour", requests, bytes)
				if requests > minutes*3/2 || bytes > 400*minutes {
					t.Errorf("%d requests and %d bytes of bodies in %d minutes", requests, bytes, minutes)
				}
			})
		})
	}
}

// differ fails the test unless times are between least and most, and take
// everything in between.
func differ(t *testing.T, name string, all []time.Duration, least, most time.Duration) {
	t.Helper()
	if len(all) < 50 {
		t.Fatalf("%s: %d of them", name, len(all))
	}
	shortest, longest := slices.Min(all), slices.Max(all)
	var tenths []int
	for _, d := range all {
		tenths = append(tenths, int(10*(d-shortest)/(longest-shortest+1)))
	}
	kinds, _ := spread(tenths)
	t.Logf("%s: %d from %v to %v", name, len(all), shortest.Round(ms), longest.Round(ms))
	if shortest < least || longest > most || longest-shortest < (most-least)/2 || kinds < 9 {
		t.Errorf("%s: from %v to %v in %d tenths, want %v to %v", name, shortest, longest, kinds, least, most)
	}
}

// onTheWay is what the network adds to a time.
const onTheWay = 200 * ms

// Nothing that an idle session does has a period, and no limit is exceeded:
// neither those assumed nor those learned.
func TestNoPeriod(t *testing.T) {
	for _, c := range []struct {
		name   string
		mode   Mode
		idle   time.Duration // the path cuts answers after so much silence; 0: not
		silent time.Duration // the longest silence
		age    time.Duration // of the longest stream
	}{
		{"polls", Poll, 0, longSilence, 0},
		{"streams", Stream, 0, longSilence, longAge},
		{"polls, cut", Poll, 10 * time.Second, 8 * time.Second, 0},
		{"streams, cut", Stream, 10 * time.Second, 8 * time.Second, longAge},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.net.set(always(near()))
				o, _, _ := w.observe(c.mode, func(n *network) http.RoundTripper { return cutter{n, c.idle, 0} })
				time.Sleep(10 * time.Minute) // to learn
				before := len(o.since(0))
				time.Sleep(4 * time.Hour)
				seen := o.since(before)
				var silences, ages []time.Duration
				for i, e := range seen[:len(seen)-3] {
					chunks := e.written()
					if c.mode == Poll {
						silences = append(silences, seen[i+1].at.Sub(e.at))
						if len(chunks) != 1 {
							t.Fatalf("an answer of %d writes", len(chunks))
						}
						continue
					}
					for j := 1; j < len(chunks)-1; j++ { // the last is said at the end of the stream's time
						silences = append(silences, chunks[j].at.Sub(chunks[j-1].at))
					}
					ages = append(ages, chunks[len(chunks)-1].at.Sub(chunks[0].at))
				}
				differ(t, "silences", silences, c.silent*3/4-ms, c.silent+onTheWay)
				if c.age > 0 {
					differ(t, "streams", ages, c.age*3/4-onTheWay, c.age+onTheWay)
				}
			})
		})
	}
}

// Sessions differ in what all of one session's exchanges have in common: their
// path and the fields of the answers. And in how long the first answer stays
// open.
func TestSessionsDiffer(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		var lengths []int
		var types, caches []string
		var first []time.Duration
		for range 100 {
			o, client, session := w.observe(Auto, nil)
			say(t, client.Conn(), session.Conn(), "question")
			say(t, session.Conn(), client.Conn(), "answer")
			time.Sleep(5 * time.Second)
			seen := o.since(0)
			chunks := seen[0].written()
			first = append(first, chunks[len(chunks)-1].at.Sub(chunks[0].at))
			for _, e := range seen {
				if e.path != seen[0].path {
					t.Errorf("a session's paths are %q and %q", seen[0].path, e.path)
				}
				if e.header == nil {
					continue // still open
				}
				for _, name := range []string{"Content-Type", "Cache-Control"} {
					if got, want := e.header.Get(name), seen[0].header.Get(name); got != want {
						t.Errorf("a session's answers have %s %q and %q", name, want, got)
					}
				}
				if !strings.Contains(e.header.Get("Cache-Control"), "no-store") || e.header.Get("X-Accel-Buffering") != "no" {
					t.Errorf("an answer may be stored or held back: %v", e.header)
				}
			}
			if dir := path.Dir(seen[0].path); dir != "/a/b" {
				t.Errorf("a path below %q", dir)
			}
			lengths = append(lengths, len(path.Base(seen[0].path)))
			types = append(types, seen[0].header.Get("Content-Type"))
			caches = append(caches, seen[0].header.Get("Cache-Control"))
			client.Conn().Close()
			<-client.Done()
		}
		if kinds, _ := spread(lengths); kinds < 15 || slices.Min(lengths) < 32 || slices.Max(lengths) > 64 {
			t.Errorf("100 sessions have names of %d lengths, from %d to %d characters", kinds, slices.Min(lengths), slices.Max(lengths))
		}
		if kinds, _ := spread(types); kinds != len(contentTypes) {
			t.Errorf("100 sessions have %d types of content", kinds)
		}
		if kinds, _ := spread(caches); kinds != len(cacheControls) {
			t.Errorf("100 sessions have %d ways to forbid storing", kinds)
		}
		differ(t, "first answers", first, firstStream-ms, firstStream*3/2+ms)
	})
}

// Limits of bodies are kept and never too small for a record.
func TestBodyBelow(t *testing.T) {
	for _, most := range []int{minBody, minBody + 1, 100 << 10, MaxBody, maxAnswer, maxStream} {
		var all []int
		for range 1000 {
			n := bodyBelow(most)
			if n > most || n < minBody || n < most*7/8 {
				t.Fatalf("%d is below %d", n, most)
			}
			all = append(all, n)
		}
		if kinds, _ := spread(all); most > 2*minBody && kinds < 500 {
			t.Errorf("1000 limits below %d are %d different ones", most, kinds)
		}
	}
}
