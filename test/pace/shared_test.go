//go:build !race

package pace

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engine"
	"turbotunnel/common/engines"
	"turbotunnel/common/front"
	"turbotunnel/common/handshake"
)

const (
	// sharesAfter is how long sessions have to find their shares of a path, which are
	// measured for sharesFor.
	sharesAfter = 15 * time.Second
	sharesFor   = 30 * time.Second
)

// Sessions that begin to share a path at once use it, and each gets its part. The last
// row has twice as many as the path can serve well: what each has in flight at first
// takes it ten seconds.
func TestPaceShared(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	for _, r := range []struct {
		kind     byte
		sessions int
		all      float64 // least share of the path that they use together
		least    float64 // of the mean, that each gets
	}{
		{'u', 50, 0.92, 0.85},
		{'d', 50, 0.92, 0.85},
		{'u', 100, 0.85, 1. / 3},
	} {
		t.Run(fmt.Sprintf("%c/%d", r.kind, r.sessions), func(t *testing.T) {
			path := row{engine: engines.Default, rtt: 50 * ms, rate: 2.5e6, scheme: "https", way: "streamed"}
			act(t, path, func(s *scene) {
				s.path.takeTurns()
				got := s.together(r.kind, r.sessions)
				mean := 0.0
				for _, n := range got {
					mean += n / float64(len(got))
				}
				all, least := mean*float64(len(got))/path.rate, slices.Min(got)/mean
				t.Logf("%.3f of the path; the slowest has %.3f of the mean", all, least)
				if all < r.all || least < r.least {
					t.Errorf("want %.2f of the path, and %.2f", r.all, r.least)
				}
			})
		})
	}
}

// together has sessions, each with a connection of its own, move all that they can,
// and returns how many bytes a second each has moved.
func (s *scene) together(kind byte, sessions int) []float64 {
	s.counts = make([]atomic.Int64, sessions)
	var streams []engine.Stream
	for i := range sessions {
		st := s.openAlone()
		if kind == 'd' {
			fmt.Fprintf(st, "d%d\n", int64(1)<<40)
		} else {
			fmt.Fprintf(st, "c%d\n", i)
		}
		streams = append(streams, st)
		time.Sleep(5 * ms)
	}
	time.Sleep(time.Second)
	for i, st := range streams {
		if kind == 'd' {
			go io.Copy(counter{&s.counts[i]}, st)
		} else {
			go io.Copy(st, zeros{})
		}
	}
	time.Sleep(sharesAfter)
	moved := make([]float64, sessions)
	for i := range s.counts {
		moved[i] = -float64(s.counts[i].Load())
	}
	time.Sleep(sharesFor)
	for i := range s.counts {
		moved[i] = (moved[i] + float64(s.counts[i].Load())) / sharesFor.Seconds()
	}
	return moved
}

// openAlone opens a stream of a session that shares nothing with others.
func (s *scene) openAlone() engine.Stream {
	f, err := front.New(front.Config{URL: s.url, Dialer: s.path.dial, RootCAs: s.roots})
	if err != nil {
		s.t.Fatal(err)
	}
	s.alone = append(s.alone, f)
	c := carrier.NewClient(carrier.ClientConfig{
		Transport: way{f}, URL: s.url, Key: handshake.WellKnown.Public(), Engine: s.engine.Name(), Mode: s.mode,
	})
	e, err := s.engine.Client(c.Conn())
	if err != nil {
		s.t.Fatal(err)
	}
	s.sessions = append(s.sessions, e)
	st, err := e.Open(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// A counter counts bytes.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}
