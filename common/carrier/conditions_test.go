package carrier

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fedMode is Auto where requests may be written bit by bit.
const fedMode = Mode("fed")

// TestConditions moves datagrams in both directions over networks of every
// kind. On none of them one is lost, doubled, altered or out of order.
func TestConditions(t *testing.T) {
	const ms = time.Millisecond
	near := fate{there: 10 * ms, back: 10 * ms}
	far := fate{there: 100 * ms, back: 100 * ms}
	// sometimes makes an exchange in so many come to grief.
	sometimes := func(n *network, one float64, f fate, bad func(*fate)) func(*request) fate {
		return func(*request) fate {
			f := f
			if n.chance(one) {
				bad(&f)
			}
			return f
		}
	}
	for _, c := range []struct {
		name  string
		start func(n *network)
		limit time.Duration // of virtual time
	}{
		{"no delay", func(*network) {}, 2 * time.Second},
		{"near", func(n *network) { n.set(always(near)) }, 2 * time.Second},
		{"far", func(n *network) { n.set(always(far)) }, 10 * time.Second},
		{"requests refused", func(n *network) {
			n.set(sometimes(n, 0.1, near, func(f *fate) { f.refuse = true }))
		}, 10 * time.Second},
		{"requests vanish", func(n *network) {
			n.set(sometimes(n, 0.05, near, func(f *fate) { f.vanish = true }))
		}, 2 * time.Minute},
		{"answers lost", func(n *network) {
			n.set(sometimes(n, 0.1, near, func(f *fate) { f.loseAnswer = true }))
		}, 10 * time.Second},
		{"requests cut", func(n *network) {
			n.set(sometimes(n, 0.2, near, func(f *fate) { f.cutRequest, f.cutAt = true, n.random.IntN(40000) }))
		}, 10 * time.Second},
		{"answers cut", func(n *network) {
			n.set(sometimes(n, 0.2, near, func(f *fate) { f.cutAnswer, f.cutAt = true, n.random.IntN(40000) }))
		}, 10 * time.Second},
		{"answers cut at their beginning", func(n *network) {
			n.set(sometimes(n, 0.3, near, func(f *fate) { f.cutAnswer, f.cutAt = true, n.random.IntN(100) }))
		}, 20 * time.Second},
		{"answers stop in silence", func(n *network) {
			n.set(sometimes(n, 0.05, near, func(f *fate) { f.cutAnswer, f.silentCut, f.cutAt = true, true, n.random.IntN(40000) }))
		}, 3 * time.Minute},
		{"requests doubled", func(n *network) {
			n.set(sometimes(n, 0.3, near, func(f *fate) { f.again, f.after = true, time.Duration(n.random.IntN(50))*ms }))
		}, 5 * time.Second},
		{"requests doubled, second answer", func(n *network) {
			n.set(sometimes(n, 0.3, near, func(f *fate) {
				f.again, f.second, f.after = true, true, time.Duration(n.random.IntN(50))*ms
			}))
		}, 20 * time.Second},
		{"reordered", func(n *network) {
			n.set(func(*request) fate {
				return fate{there: time.Duration(5+n.random.IntN(300)) * ms, back: time.Duration(5+n.random.IntN(300)) * ms}
			})
		}, 20 * time.Second},
		{"whole answers", func(n *network) {
			f := near
			f.buffered = true
			n.set(always(f))
		}, 5 * time.Minute},
		{"one at a time", func(n *network) {
			n.atMost(1)
			n.set(always(near))
		}, 5 * time.Minute}, // a stream that was asked for stands in the way of requests
		{"six at a time", func(n *network) {
			n.atMost(6)
			n.set(always(near))
		}, 10 * time.Second},
		{"large bodies refused", func(n *network) {
			n.set(bodyLimit(near, 100<<10))
		}, 10 * time.Second},
		{"all but the smallest bodies refused", func(n *network) {
			n.set(bodyLimit(near, minBody))
		}, 30 * time.Second},
		{"requests above 64 KB answered 403", func(n *network) {
			n.set(bodiesAbove(near, 64<<10, func(f *fate) { f.instead = page(http.StatusForbidden) }))
		}, 10 * time.Second},
		{"requests above 8 KB answered 403", func(n *network) {
			n.set(bodiesAbove(near, 8<<10, func(f *fate) { f.instead = page(http.StatusForbidden) }))
		}, 30 * time.Second},
		{"requests above 17000 bytes answered 502", func(n *network) {
			n.set(bodiesAbove(near, 17000, func(f *fate) { f.instead = page(http.StatusBadGateway) }))
		}, 30 * time.Second},
		{"requests above 16 KB answered 503", func(n *network) {
			n.set(bodiesAbove(near, 16<<10, func(f *fate) { f.instead = page(http.StatusServiceUnavailable) }))
		}, 30 * time.Second},
		{"requests above 6 KB reset", func(n *network) {
			n.set(bodiesAbove(near, 6<<10, func(f *fate) { f.refuse = true }))
		}, 30 * time.Second},
		{"requests above 64 KB swallowed", func(n *network) {
			n.set(bodiesAbove(near, 64<<10, func(f *fate) { f.vanish = true }))
		}, 12 * time.Second},
		{"requests above 8 KB swallowed", func(n *network) {
			n.set(bodiesAbove(near, 8<<10, func(f *fate) { f.vanish = true }))
		}, 12 * time.Second},
		{"requests above 16 KB swallowed, six at a time", func(n *network) {
			n.atMost(6)
			n.set(bodiesAbove(near, 16<<10, func(f *fate) { f.vanish = true }))
		}, 12 * time.Second},
		{"requests above 64 KB swallowed, six at a time", func(n *network) {
			n.atMost(6)
			n.set(bodiesAbove(near, 64<<10, func(f *fate) { f.vanish = true }))
		}, 12 * time.Second},
		{"requests of more than 16 KB swallowed, one at a time", func(n *network) {
			n.atMost(1)
			n.set(bodiesAbove(near, 16<<10, func(f *fate) { f.vanish = true }))
		}, 45 * time.Second},
		{"a slow path, one at a time", func(n *network) {
			n.atMost(1)
			n.set(func(r *request) fate { // nothing that is learned of it would help
				return fate{there: 10*ms + time.Duration(r.ContentLength)*time.Second/(2*slowest), back: 10 * ms}
			})
		}, 45 * time.Second},
		{"answers above 100000 bytes become 502", func(n *network) {
			n.set(answersAbove(near, 100000, http.StatusBadGateway))
		}, 2 * time.Minute},
		{"answers above 8000 bytes become 502", func(n *network) {
			n.set(answersAbove(near, 8000, http.StatusBadGateway))
		}, 2 * time.Minute},
		{"answers above 16000 bytes become 503", func(n *network) {
			n.set(answersAbove(near, 16000, http.StatusServiceUnavailable))
		}, 2 * time.Minute},
		{"answers above 16000 bytes become pages", func(n *network) {
			n.set(answersAbove(near, 16000, http.StatusOK))
		}, 10 * time.Second},
		{"answers above 100000 bytes become 503", func(n *network) {
			n.set(answersAbove(near, 100000, http.StatusServiceUnavailable))
		}, 30 * time.Second},
		{"answers above 8000 bytes become 503, far away", func(n *network) {
			n.set(answersAbove(far, 8000, http.StatusServiceUnavailable))
		}, 30 * time.Second},
		{"answers above 16000 bytes become 429", func(n *network) {
			n.set(answersAbove(near, 16000, http.StatusTooManyRequests))
		}, time.Minute},
		{"requests above 16 KB answered 429", func(n *network) {
			n.set(bodiesAbove(near, 16<<10, func(f *fate) { f.instead = page(http.StatusTooManyRequests) }))
		}, 30 * time.Second},
		{"answers above 100000 bytes swallowed", func(n *network) {
			n.set(answersAbove(near, 100000, 0))
		}, 4 * time.Minute},
		{"too many requests", func(n *network) {
			n.set(sometimes(n, 0.1, near, func(f *fate) { f.instead = page(http.StatusTooManyRequests, "Retry-After", "1") }))
		}, 2 * time.Minute},
		{"bad gateway", func(n *network) {
			n.set(sometimes(n, 0.2, near, func(f *fate) { f.instead = page(http.StatusBadGateway) }))
		}, 20 * time.Second},
		{"pages", func(n *network) {
			n.set(sometimes(n, 0.2, near, func(f *fate) { f.instead = page(http.StatusOK) }))
		}, 20 * time.Second},
		{"old answers", func(n *network) {
			n.set(sometimes(n, 0.2, near, func(f *fate) { f.stale = true }))
		}, time.Minute},
		{"swapped answers", func(n *network) {
			n.set(sometimes(n, 0.2, near, func(f *fate) { f.swapped = true }))
		}, time.Minute},
		{"outage of 5 s", func(n *network) { outage(n, near, 5*time.Second) }, 20 * time.Second},
		{"outage of 60 s", func(n *network) { outage(n, near, time.Minute) }, 2 * time.Minute},
		{"connections cut", func(n *network) {
			n.set(always(near))
			go func() {
				for range 50 {
					time.Sleep(100 * ms)
					n.cutAll()
				}
			}()
		}, 20 * time.Second},
		{"everything", func(n *network) {
			n.set(func(*request) fate {
				f := fate{there: time.Duration(n.random.IntN(100)) * ms, back: time.Duration(n.random.IntN(100)) * ms}
				f.cutAt, f.after = n.random.IntN(40000), time.Duration(n.random.IntN(100))*ms
				switch n.random.IntN(20) {
				case 0:
					f.refuse = true
				case 1:
					f.loseAnswer = true
				case 2:
					f.cutRequest = true
				case 3:
					f.cutAnswer = true
				case 4:
					f.again = true
				case 5:
					f.again, f.second = true, true
				case 6:
					f.instead = page(http.StatusBadGateway)
				case 7:
					f.instead = page(http.StatusOK)
				case 8:
					f.buffered = true
				}
				return f
			})
		}, time.Minute},
	} {
		for _, mode := range []Mode{Poll, Stream, Auto, fedMode} {
			t.Run(fmt.Sprintf("%s/%s", c.name, mode), func(t *testing.T) {
				mode, feeds := mode, mode == fedMode
				if feeds {
					mode = Auto
				}
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					w.net.feeds = feeds
					if strings.Contains(c.name, " above ") {
						c.start(w.net) // nothing larger has ever passed
					}
					client, session := w.pair(mode)
					if feeds {
						w.learnFeeds(client, session)
						if strings.HasPrefix(c.name, "answers above") == client.feeding.passes {
							t.Errorf("feeds pass: %v", client.feeding.passes)
						}
					}
					c.start(w.net)
					w.net.cutAll() // the poll or stream that is open
					begin := time.Now()
					const n = 800
					up := transfer(t, "up", client.Conn(), session.Conn(), n)
					down := transfer(t, "down", session.Conn(), client.Conn(), n)
					<-up
					<-down
					took := time.Since(begin)
					t.Logf("%v, %d requests, %d at once, %d and %d bytes again, %d and %d given up", took.Round(ms), w.net.count(), w.net.atOnce(),
						client.link.out.resent.Load(), session.link.out.resent.Load(), client.link.in.givenUp.Load(), session.link.in.givenUp.Load())
					if strings.HasPrefix(c.name, "a slow path") && client.up.limit < MaxBody {
						t.Errorf("bodies of at most %d bytes, without need", client.up.limit)
					}
					if took > c.limit {
						t.Errorf("took %v", took)
					}
					quiet(t, "the client", client.Conn())
					quiet(t, "the server", session.Conn())
					w.end()
				})
			})
		}
	}
}

// bodiesAbove does something to requests of more than limit bytes.
func bodiesAbove(f fate, limit int64, bad func(*fate)) func(*request) fate {
	return func(r *request) fate {
		f := f
		if r.ContentLength > limit {
			bad(&f)
		}
		f.above, f.large = limit, bad
		return f
	}
}

// answersAbove is a gateway that takes no answer of more than limit bytes, and says so
// by a status.
func answersAbove(f fate, limit, status int) func(*request) fate {
	f.buffered, f.largest, f.status = true, limit, status
	return always(f)
}

// bodyLimit refuses bodies that are larger.
func bodyLimit(f fate, limit int64) func(*request) fate {
	return bodiesAbove(f, limit, func(f *fate) { f.instead = page(http.StatusRequestEntityTooLarge) })
}

// outage breaks all connections after a while and lets none succeed for d.
func outage(n *network, f fate, d time.Duration) {
	n.set(always(f))
	go func() {
		time.Sleep(500 * time.Millisecond)
		n.set(always(fate{there: f.there, refuse: true}))
		n.cutAll()
		time.Sleep(d)
		n.set(always(f))
	}()
}
