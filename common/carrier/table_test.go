package carrier

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/wire"
)

// seat adds a session to a table.
func seat(tab *table, client string, r rank, at time.Time) *Session {
	s := new(Session)
	binary.LittleEndian.PutUint64(s.id[:], rand.Uint64())
	var from netip.Prefix
	if client != "" {
		from = neighbours(netip.MustParseAddr(client))
	}
	tab.add(s, from, at)
	s.place.confirmed = r > unconfirmed
	if r == active {
		s.place.streams = 1
	}
	tab.changed(s)
	return s
}

// Who goes for a new session.
func TestVictim(t *testing.T) {
	now := time.Now()
	type one struct {
		client string
		rank   rank
		age    time.Duration
		many   int
	}
	for _, c := range []struct {
		why  string
		have []one // in the order in which they came
		want int   // which of them goes
	}{
		{"nobody", nil, -1},
		{"the oldest that nobody has confirmed", []one{
			{"", active, time.Hour, 1}, {"", idle, time.Hour, 1}, {"", unconfirmed, 30 * time.Second, 1}, {"", unconfirmed, 20 * time.Second, 1},
		}, 2},
		{"then the one that has been without streams for the longest", []one{
			{"", active, time.Hour, 1}, {"", idle, 50 * time.Minute, 1}, {"", idle, time.Hour, 1},
		}, 1},
		{"before one that is about to be confirmed", []one{
			{"", active, time.Hour, 10}, {"", idle, time.Minute, 1}, {"", unconfirmed, time.Second, 1},
		}, 1},
		{"but not before many of these", []one{
			{"", active, time.Hour, 10}, {"", idle, time.Minute, 1}, {"", unconfirmed, 2 * time.Second, 5},
		}, 2},
		{"that one goes before those with streams", []one{
			{"", active, time.Hour, 10}, {"", unconfirmed, time.Second, 1},
		}, 1},
		{"of which the oldest goes last", []one{{"", active, time.Hour, 10}}, 0},
		{"who has much more than others loses before they do", []one{
			{"", unconfirmed, time.Minute, 10}, {"192.0.2.1", active, time.Hour, 60}, {"192.0.2.2", idle, time.Hour, 5},
		}, 1},
		{"of two the one that has more", []one{
			{"192.0.2.1", active, time.Hour, 60}, {"192.0.2.2", active, time.Hour, 61}, {"192.0.2.1", idle, time.Hour, 2},
		}, 2},
		{"a /64 is one client", []one{
			{"2001:db8::1", active, time.Hour, 6}, {"2001:db8::ffff:1", active, time.Hour, 6}, {"2001:db8:0:1::1", idle, time.Hour, 6},
		}, 0},
		{"a /48 is not", []one{
			{"2001:db8::1", active, time.Hour, 6}, {"2001:db8:0:2::1", active, time.Hour, 6}, {"2001:db8:0:1::1", idle, time.Hour, 6},
		}, 2},
	} {
		tab := newTable(10 * largeShare) // more than ten are many
		first := make(map[*Session]int)
		for i, o := range c.have {
			for n := range o.many {
				s := seat(&tab, o.client, o.rank, now.Add(-o.age))
				if first[s] = i; n > 0 {
					first[s] = -2
				}
			}
		}
		got := -1
		if s := tab.victim(now); s != nil {
			got = first[s]
		}
		if got != c.want {
			t.Errorf("%s: number %d goes, want %d", c.why, got, c.want)
		}
	}
}

// Whatever happens to sessions, a table has each of them once in each place.
func TestTableIsWhole(t *testing.T) {
	tab := newTable(100)
	clients := []string{"", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:1::1"}
	var all []*Session
	now := time.Now()
	for range 3000 {
		switch n := rand.IntN(6); {
		case n < 2 && !tab.isFull():
			all = append(all, seat(&tab, clients[rand.IntN(len(clients))], unconfirmed, now))
		case n == 2 && len(all) > 0:
			i := rand.IntN(len(all))
			if rand.IntN(2) == 0 {
				i = slices.Index(all, tab.victim(now))
			}
			if !tab.remove(all[i]) || tab.remove(all[i]) {
				t.Fatal("a session was not removed once")
			}
			tab.changed(all[i])
			tab.moved(all[i], neighbours(netip.MustParseAddr(clients[1])))
			all = slices.Delete(all, i, i+1)
		case len(all) > 0:
			s := all[rand.IntN(len(all))]
			s.place.confirmed = rand.IntN(3) > 0
			s.place.streams = rand.IntN(2)
			tab.changed(s)
			if rand.IntN(3) == 0 {
				tab.moved(s, neighbours(netip.MustParseAddr(clients[1+rand.IntN(len(clients)-1)])))
			}
		}
		n, known, large := 0, 0, 0
		for r := range ranks {
			n += tab.all.lists[r].Len()
		}
		for _, q := range tab.clients {
			m := 0
			for r := range ranks {
				m += q.lists[r].Len()
				for e := q.lists[r].Front(); e != nil; e = e.Next() {
					if s := e.Value.(*Session); s.place.client != q || s.place.rank != r {
						t.Fatal("a session stands where it does not belong")
					}
				}
			}
			if m != q.n || m == 0 {
				t.Fatalf("a client has %d sessions, %d counted", m, q.n)
			}
			if _, is := tab.large[q]; is != (m > tab.limit/largeShare) {
				t.Fatalf("a client with %d sessions has many: %v", m, is)
			} else if is {
				large++
			}
			known += m
		}
		for _, s := range all {
			if s.place.client == nil {
				known++
			}
		}
		if n != len(all) || n != tab.all.n || known != n || len(tab.byID) != n || large != len(tab.large) {
			t.Fatalf("%d sessions, %d in lists, %d counted, %d by client, %d by ID; %d of %d clients have many",
				len(all), n, tab.all.n, known, len(tab.byID), large, len(tab.large))
		}
	}
}

// Newcomers are not refused when the table is full, whatever it is full of, and those
// that carry something stay.
func TestFullTable(t *testing.T) {
	for _, confirm := range []bool{false, true} {
		t.Run(fmt.Sprintf("confirmed=%v", confirm), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				const places = 40
				w.restart(limits{unconfirmed: 8, sessions: places, memory: defaultMemory})
				time.Sleep(time.Second)
				healthy, session := w.pair(Poll)
				session.Streams(1)
				flood := func(n int) {
					for range n {
						c := w.raw(w.hello())
						c.greet()
						if confirm {
							c.isOurs("a request", c.post(c.body(wire.Head{})))
						}
					}
				}
				for range 3 {
					flood(places)
					newcomer := w.raw(w.hello())
					newcomer.greet()
					flood(places / youngShare / 2) // while the answer is on its way
					newcomer.isOurs("a newcomer's request", newcomer.post(newcomer.body(wire.Head{})))
					flood(places / 2)
					newcomer.isOurs("its next request", newcomer.post(newcomer.body(wire.Head{})))
					say(t, healthy.Conn(), session.Conn(), "still here")
				}
				if s := w.server.Stats(); s.Sessions != places || s.Evicted < 2*places {
					t.Errorf("%d sessions, %d went; want %d and more than %d", s.Sessions, s.Evicted, places, 2*places)
				}
			})
		})
	}
}

// A client's sessions are filed by the address from which it was heard last.
func TestMoves(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		from := netip.MustParseAddr("192.0.2.1")
		w.server.cfg.ClientAddr = func(*http.Request) netip.Addr { return from }
		time.Sleep(time.Second)
		c := w.raw(w.hello())
		c.greet()
		where := func() string {
			w.server.mu.Lock()
			defer w.server.mu.Unlock()
			text := ""
			for p, q := range w.server.sessions.clients {
				text += fmt.Sprint(p, " ", q.n)
			}
			return text
		}
		if got := where(); got != "192.0.2.1/32 1" {
			t.Error(got)
		}
		from = netip.MustParseAddr("2001:db8::17")
		c.post(c.body(wire.Head{}))
		synctest.Wait()
		if got := where(); got != "2001:db8::/64 1" {
			t.Error(got)
		}
		from = netip.Addr{}
		c.post(c.body(wire.Head{}))
		if got := where(); got != "2001:db8::/64 1" {
			t.Error(got)
		}
	})
}

// BenchmarkFullTable is what a newcomer costs a table that is full.
func BenchmarkFullTable(b *testing.B) {
	tab := newTable(maxSessions)
	now := time.Now()
	for i := 0; !tab.isFull(); i++ {
		seat(&tab, fmt.Sprintf("192.0.%d.%d", i>>8&255, i&255), idle, now)
	}
	for b.Loop() {
		tab.remove(tab.victim(now))
		seat(&tab, "192.0.2.1", idle, now)
	}
}
