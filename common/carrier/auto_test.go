package carrier

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A cutter is a network that cuts answers which are silent for too long, or
// open for too long.
type cutter struct {
	*network
	idle time.Duration // 0: never
	age  time.Duration // 0: never
}

func (c cutter) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	cut := func() { cancel(errReset) }
	var timers []*time.Timer
	if c.age > 0 {
		timers = append(timers, time.AfterFunc(c.age, cut))
	}
	var idle *time.Timer
	if c.idle > 0 {
		idle = time.AfterFunc(c.idle, cut)
		timers = append(timers, idle)
	}
	stop := func() {
		for _, t := range timers {
			t.Stop()
		}
		cancel(nil)
	}
	resp, err := c.network.RoundTrip(req.WithContext(ctx))
	if err != nil {
		stop()
		return nil, err
	}
	resp.Body = &cutBody{resp.Body, idle, c.idle, stop}
	return resp, nil
}

type cutBody struct {
	io.ReadCloser
	timer *time.Timer
	idle  time.Duration
	stop  func()
}

func (b *cutBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.timer != nil {
		b.timer.Reset(b.idle)
	}
	return n, err
}

func (b *cutBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}

func near() fate { return fate{there: 25 * ms, back: 25 * ms} }

func held() fate {
	f := near()
	f.buffered = true
	return f
}

// both moves n datagrams each way and returns how long that took.
func both(t *testing.T, client *Client, session *Session, n int) time.Duration {
	begin := time.Now()
	up := transfer(t, "up", client.Conn(), session.Conn(), n)
	down := transfer(t, "down", session.Conn(), client.Conn(), n)
	<-up
	<-down
	return time.Since(begin)
}

// On a path that delivers what is written, the client receives by one answer
// that stays open, from its first exchange on, and an idle session is quiet.
func TestAutoStreams(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		client, session := w.pair(Auto)
		time.Sleep(time.Second)
		if !client.way().streams.has() {
			t.Error("the path's first answer did not show that it streams")
		}
		both(t, client, session, 300)
		time.Sleep(time.Minute)
		before := w.net.count()
		time.Sleep(10 * time.Minute)
		if n := w.net.count() - before; n > 20 {
			t.Errorf("%d requests in 10 idle minutes", n)
		}
		begin := time.Now()
		say(t, session.Conn(), client.Conn(), "news")
		if took := time.Since(begin); took > 26*ms {
			t.Errorf("what the server says takes %v, and half a round trip is 25 ms", took)
		}
	})
}

// Once a stream is open, the polls that were asked for before end: they would
// hold memory at both ends and at the gateways between.
func TestAutoEndsPolls(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		client, session := w.pair(Auto)
		say(t, client.Conn(), session.Conn(), "hello")
		time.Sleep(lively)
		w.net.mu.Lock()
		defer w.net.mu.Unlock()
		if len(w.net.open) != 1 {
			t.Errorf("%d exchanges are open, and one stream is enough", len(w.net.open))
		}
	})
}

// A client that speaks at once makes a probe while its first answer still comes.
// When that one has shown that the path streams, nothing waits for the probe's
// end.
func TestAutoSpeaksAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		client, session := w.pair(Auto)
		for i := range 40 {
			begin := time.Now()
			say(t, client.Conn(), session.Conn(), "question")
			say(t, session.Conn(), client.Conn(), "answer")
			if took := time.Since(begin); took > 4*50*ms {
				t.Errorf("question %d and its answer take %v, and a round trip is 50 ms", i, took)
			}
		}
	})
}

// On a path that holds answers back until they are complete, the client polls.
func TestAutoHeldBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(held()))
		client, session := w.pair(Auto)
		if took := both(t, client, session, 800); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		if client.way().streams.has() {
			t.Error("takes the path for one that streams")
		}
		if n := client.link.in.givenUp.Load() + session.link.in.givenUp.Load(); n > 0 {
			t.Errorf("%d records were given up", n)
		}
	})
}

// lingering takes a while to end an exchange that is not wanted any more.
type lingering struct {
	*network
	more time.Duration
}

func (l lingering) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.network.RoundTrip(req)
	if err != nil {
		time.Sleep(l.more)
		return nil, err
	}
	resp.Body = &lingeringBody{resp.Body, l.more}
	return resp, nil
}

type lingeringBody struct {
	io.ReadCloser
	more time.Duration
}

func (b *lingeringBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		time.Sleep(b.more)
	}
	return n, err
}

// A path may change its mind in the middle of a session, both ways. What it holds back
// when that is noticed is sent again soon, also if the answer that was to bring it has
// not ended yet when others are asked for.
func TestAutoChanges(t *testing.T) {
	t.Run("at once", func(t *testing.T) { testAutoChanges(t, 0) })
	t.Run("answers end late", func(t *testing.T) { testAutoChanges(t, 100*ms) })
}

func testAutoChanges(t *testing.T, more time.Duration) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		client := w.dial(Auto, func(cfg *ClientConfig) { cfg.Transport = lingering{w.net, more} })
		<-client.Ready()
		session := <-w.accepted
		both(t, client, session, 100)
		for range 2 {
			w.net.set(always(held()))
			w.net.cutAll()
			if took := both(t, client, session, 300); took > 1100*ms {
				t.Errorf("held back: took %v", took)
			}
			if client.way().streams.has() {
				t.Error("did not notice that answers are held back")
			}
			w.net.set(always(near()))
			for range 90 {
				say(t, client.Conn(), session.Conn(), "still here")
				time.Sleep(time.Second)
			}
			if !client.way().streams.has() {
				t.Error("did not notice that answers come as they are written")
			}
		}
		if n := client.link.in.givenUp.Load() + session.link.in.givenUp.Load(); n > 0 {
			t.Errorf("%d records were given up", n)
		}
	})
}

// A path that cuts silent answers, or all answers after some time, is learned:
// it costs a few exchanges, and then nothing but more of them.
func TestAutoCut(t *testing.T) {
	for _, c := range []struct {
		name      string
		idle, age time.Duration
		fate      fate
		most      int64 // failed exchanges in ten minutes
		requests  int   // in ten minutes
	}{
		{"silence of 10 s, streamed", 10 * time.Second, 0, near(), 4, 40},
		{"silence of 10 s, held back", 10 * time.Second, 0, held(), 12, 160},
		{"after 30 s, streamed", 0, 30 * time.Second, near(), 6, 60},
		{"after 5 s, streamed", 0, 5 * time.Second, near(), 8, 250},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.net.set(always(c.fate))
				var failed atomic.Int64
				client := w.dial(Auto, func(cfg *ClientConfig) {
					cfg.Transport = counting{cutter{w.net, c.idle, c.age}, &failed}
				})
				<-client.Ready()
				session := <-w.accepted
				both(t, client, session, 100)
				before := w.net.count()
				failed.Store(0)
				for range 20 {
					time.Sleep(30 * time.Second)
					say(t, session.Conn(), client.Conn(), "news")
				}
				if n := w.net.count() - before; n > c.requests || failed.Load() > c.most {
					t.Errorf("%d requests in ten minutes, of which %d failed", n, failed.Load())
				}
				both(t, client, session, 300)
			})
		})
	}
}

// A forgetter is a network on which nothing of an answer comes any more when it has been
// silent for a while, its end neither, as when an address translator forgets a connection.
type forgetter struct {
	*network
	after time.Duration
	lost  *atomic.Int64 // answers
}

func (n forgetter) RoundTrip(req *http.Request) (*http.Response, error) {
	began := time.Now()
	resp, err := n.network.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body := &forgotten{resp.Body, req.Context(), n, began}
	if err := body.remembers(); err != nil {
		resp.Body.Close()
		return nil, err
	}
	resp.Body = body
	return resp, nil
}

type forgotten struct {
	io.ReadCloser
	ctx   context.Context
	n     forgetter
	heard time.Time
}

func (b *forgotten) remembers() error {
	if time.Since(b.heard) > b.n.after {
		b.n.lost.Add(1)
		<-b.ctx.Done()
		return context.Cause(b.ctx)
	}
	b.heard = time.Now()
	return nil
}

func (b *forgotten) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err := b.remembers(); err != nil {
		return 0, err
	}
	return n, err
}

// An idle session finds out how long answers may be silent. What it costs where they may
// not is a few answers, and none that says something later.
func TestSilences(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream} {
		for _, c := range []struct {
			name         string
			cut, forgets time.Duration
			least, most  time.Duration // that is asked for in the end
		}{
			{"any", 0, 0, longSilence, longSilence},
			{"cut after 60 s", 60 * time.Second, 0, longSilence, longSilence},
			{"cut after 40 s", 40 * time.Second, 0, 30 * time.Second, 32 * time.Second},
			{"cut after 20 s", 20 * time.Second, 0, 12 * time.Second, 16 * time.Second},
			{"forgotten after 40 s", 0, 40 * time.Second, defaultQuiet, defaultQuiet},
			{"forgotten after 20 s", 0, 20 * time.Second, defaultQuiet / 2, defaultQuiet / 2},
		} {
			t.Run(string(mode)+"/"+c.name, func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					w.net.set(always(near()))
					var failed atomic.Int64
					client := w.dial(mode, func(cfg *ClientConfig) {
						cfg.Transport = counting{cutter{w.net, c.cut, 0}, &failed}
						if c.forgets > 0 {
							cfg.Transport = forgetter{w.net, c.forgets, &failed}
						}
					})
					<-client.Ready()
					session := <-w.accepted
					both(t, client, session, 10)
					time.Sleep(30 * time.Minute)
					way := client.way()
					way.mu.Lock()
					asked := way.hold.most
					if mode == Stream {
						asked = way.quiet.most
					}
					way.mu.Unlock()
					if n := failed.Load(); asked < c.least || asked > c.most || n > 6 {
						t.Errorf("answers may be silent for %v, want %v to %v; %d have failed", asked, c.least, c.most, n)
					}
					failed.Store(0)
					for range 20 {
						time.Sleep(2 * time.Minute)
						say(t, session.Conn(), client.Conn(), "news")
					}
					if n := failed.Load(); n > 0 {
						t.Errorf("%d exchanges failed afterwards", n)
					}
				})
			})
		}
	}
}

// So does one on a path that lets one exchange through at a time.
func TestSilencesOneAtATime(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		w.net.atMost(1)
		var failed atomic.Int64
		client := w.dial(Auto, func(cfg *ClientConfig) {
			cfg.Transport = narrow{counting{cutter{w.net, 40 * time.Second, 0}, &failed}}
		})
		<-client.Ready()
		session := <-w.accepted
		for range 60 {
			client.way().setSerial(time.Now())
			time.Sleep(time.Minute)
		}
		if n := failed.Load(); n > 6 {
			t.Errorf("%d exchanges have failed", n)
		}
		say(t, session.Conn(), client.Conn(), "news")
	})
}

// Connections that end now and then, whatever is said on them, as when a phone changes
// its network, and outages say nothing of how long answers may be silent.
func TestSilencesByChance(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream} {
		t.Run(string(mode), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.net.set(always(near()))
				client, session := w.pair(mode)
				both(t, client, session, 10)
				random := rand.New(rand.NewPCG(1, 2))
				for i := range 50 {
					time.Sleep(5*time.Minute + time.Duration(random.Int64N(int64(time.Minute))))
					if i%5 > 0 {
						w.net.cutAll()
						continue
					}
					w.net.set(always(fate{vanish: true}))
					time.Sleep(2 * time.Minute)
					w.net.set(always(near()))
				}
				time.Sleep(5 * time.Minute)
				way := client.way()
				way.mu.Lock()
				hold, quiet := way.hold.most, way.quiet.most
				way.mu.Unlock()
				t.Logf("hold %v, quiet %v", hold, quiet)
				if asked := map[Mode]time.Duration{Poll: hold, Stream: quiet}[mode]; asked < longSilence {
					t.Errorf("answers may be silent for %v", asked)
				}
			})
		})
	}
}

// A dying network is one whose connections die now and then: of answers that are open
// then nothing more is heard.
type dying struct {
	*network
	deaths *atomic.Int64
}

func (n dying) RoundTrip(req *http.Request) (*http.Response, error) {
	lives := n.deaths.Load()
	resp, err := n.network.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body := &dyingBody{resp.Body, req.Context(), n.deaths, lives}
	if err := body.alive(); err != nil {
		resp.Body.Close()
		return nil, err
	}
	resp.Body = body
	return resp, nil
}

type dyingBody struct {
	io.ReadCloser
	ctx    context.Context
	deaths *atomic.Int64
	before int64 // deaths before it began
}

func (b *dyingBody) alive() error {
	if b.deaths.Load() == b.before {
		return nil
	}
	<-b.ctx.Done()
	return context.Cause(b.ctx)
}

func (b *dyingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err := b.alive(); err != nil {
		return 0, err
	}
	return n, err
}

// Neither do outages of a session that is in use, whose silences are too short to show
// that longer ones pass.
func TestSilencesOfTheBusy(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream} {
		for _, every := range []time.Duration{2 * time.Second, 10 * time.Second} {
			t.Run(fmt.Sprint(mode, " every ", every), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					w.net.set(always(near()))
					var deaths atomic.Int64
					client := w.dial(mode, func(cfg *ClientConfig) { cfg.Transport = dying{w.net, &deaths} })
					<-client.Ready()
					session := <-w.accepted
					for range 12 {
						for range 5 * time.Minute / every {
							time.Sleep(every)
							say(t, session.Conn(), client.Conn(), "news")
						}
						deaths.Add(1)
						w.net.set(always(fate{vanish: true}))
						time.Sleep(30 * time.Second)
						w.net.set(always(near()))
					}
					way := client.way()
					way.mu.Lock()
					defer way.mu.Unlock()
					if hold, quiet := way.hold.most, way.quiet.most; hold < defaultHold || quiet < defaultQuiet {
						t.Errorf("answers may be silent for %v, streams for %v", hold, quiet)
					}
				})
			})
		}
	}
}

// A trimmer is a network that ends answers after their first bytes.
type trimmer struct {
	*network
	on    *atomic.Bool
	whole bool // as if they had nothing more
}

func (c trimmer) RoundTrip(req *http.Request) (*http.Response, error) {
	if !c.on.Load() {
		return c.network.RoundTrip(req)
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := c.network.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = &trimmed{ReadCloser: resp.Body, cancel: cancel, whole: c.whole}
	return resp, nil
}

type trimmed struct {
	io.ReadCloser
	once   sync.Once
	cancel context.CancelCauseFunc
	whole  bool
}

func (b *trimmed) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.once.Do(func() { time.AfterFunc(time.Millisecond, func() { b.cancel(errReset) }) })
	if err == errReset && b.whole {
		err = io.EOF
	}
	return n, err
}

func (b *trimmed) Close() error {
	b.cancel(nil)
	return b.ReadCloser.Close()
}

// A path that begins to end answers as soon as they have begun makes no session ask
// as fast as it can.
func TestAutoCutAtOnce(t *testing.T) {
	for name, whole := range map[string]bool{"cut": false, "as if whole": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.net.set(always(near()))
				var on atomic.Bool
				client := w.dial(Auto, func(cfg *ClientConfig) { cfg.Transport = trimmer{w.net, &on, whole} })
				<-client.Ready()
				session := <-w.accepted
				both(t, client, session, 10)
				on.Store(true)
				before := w.net.count()
				time.Sleep(10 * time.Minute)
				if n := w.net.count() - before; n > 60 {
					t.Errorf("%d requests in ten minutes of silence", n)
				}
				on.Store(false)
				say(t, session.Conn(), client.Conn(), "news")
			})
		})
	}
}

// ragged is a network that ends every answer with an error, after all of it.
type ragged struct{ *network }

func (r ragged) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.network.RoundTrip(req)
	if err == nil {
		resp.Body = raggedBody{resp.Body}
	}
	return resp, err
}

type raggedBody struct{ io.ReadCloser }

func (b raggedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// An answer that is cut after all of it asks for nothing, in whichever mode.
func TestRaggedEnds(t *testing.T) {
	for _, mode := range []Mode{Auto, Poll, Stream} {
		for _, slots := range []int{1, 100} {
			t.Run(fmt.Sprint(mode, " ", slots), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					w.net.set(always(near()))
					w.net.atMost(slots)
					client := w.dial(mode, func(cfg *ClientConfig) { cfg.Transport = ragged{w.net} })
					<-client.Ready()
					session := <-w.accepted
					both(t, client, session, 10)
					time.Sleep(time.Minute)
					before := w.net.count()
					time.Sleep(2 * time.Minute)
					if n := w.net.count() - before; n > 80 {
						t.Errorf("%d requests in two minutes of silence", n)
					}
					say(t, session.Conn(), client.Conn(), "news")
				})
			})
		}
	}
}

// counting counts the exchanges that were cut.
type counting struct {
	cutter
	failed *atomic.Int64
}

func (c counting) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.cutter.RoundTrip(req)
	if err != nil {
		if req.Context().Err() == nil {
			c.failed.Add(1)
		}
		return nil, err
	}
	resp.Body = &countingBody{resp.Body, c, req.Context()}
	return resp, nil
}

type countingBody struct {
	io.ReadCloser
	c   counting
	ctx context.Context
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && b.ctx.Err() == nil {
		b.c.failed.Add(1)
	}
	return n, err
}

// narrow does not say how many exchanges it lets through.
type narrow struct{ Transport }

func (narrow) Slots() (n int, crowded bool) { return 100, false }

// A path that lets one exchange through at a time makes everything slow, and
// nothing else.
func TestAutoOneAtATime(t *testing.T) {
	for _, c := range []struct {
		fate   fate
		refuse func(*request) *http.Response // what comes at once; nil: it waits
	}{{near(), nil}, {held(), nil}, {near(), page(http.StatusServiceUnavailable)}, {held(), page(http.StatusTooManyRequests)}} {
		bubble(t, func(t *testing.T, w *world) {
			w.net.set(always(c.fate))
			w.net.atMost(1)
			w.net.refuseMore(c.refuse)
			client := w.dial(Auto, func(cfg *ClientConfig) { cfg.Transport = narrow{w.net} })
			<-client.Ready()
			session := <-w.accepted
			if took := both(t, client, session, 300); took > 30*time.Second {
				t.Errorf("took %v", took)
			}
			for range 3 {
				time.Sleep(20 * time.Second)
				begin := time.Now()
				say(t, client.Conn(), session.Conn(), "a question")
				say(t, session.Conn(), client.Conn(), "an answer")
				if took := time.Since(begin); took > 5*time.Second {
					t.Errorf("an idle session took %v for a question and an answer", took)
				}
			}
			if n := client.link.in.givenUp.Load() + session.link.in.givenUp.Load(); n > 0 {
				t.Errorf("%d records were given up", n)
			}
		})
	}
}

// After a pause of the path, what waited passes when answers have been ended.
// That is no path that lets one exchange through at a time.
func TestAutoPause(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		client := w.dial(Auto)
		<-client.Ready()
		session := <-w.accepted
		both(t, client, session, 300)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 60 { // half of them during the pause
				client.Conn().WriteTo(fmt.Appendf(nil, "%d", i), nil)
				time.Sleep(100 * ms)
			}
		}()
		begin := time.Now()
		w.net.set(func(*request) fate {
			f := near()
			f.there += max(0, time.Until(begin.Add(3*time.Second)))
			return f
		})
		<-done
		time.Sleep(2 * time.Second)
		if client.way().oneAtATime(time.Now()) {
			t.Error("the path is taken to let one exchange through at a time")
		}
		for range 60 {
			if _, _, err := session.Conn().ReadFrom(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
