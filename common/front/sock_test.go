package front

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A flow is a connection on which so much comes in each time.
type flow struct {
	net.Conn
	bytes int
	every time.Duration
}

func (c *flow) Read([]byte) (int, error) {
	time.Sleep(c.every)
	return c.bytes, nil
}

// A handshake that began in an outage seems to show a long way: when an answer has
// shown a short one, there are no lulls.
func TestLullsOnAShortWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSock(&flow{bytes: 16 << 10, every: time.Millisecond})
		time.Sleep(200 * time.Millisecond)
		buf := make([]byte, 32<<10)
		s.Read(buf)
		s.rtt.Store(int64(10 * time.Millisecond))
		const reads = 100
		start := time.Now()
		for range reads {
			s.Read(buf)
		}
		if took := time.Since(start); took != reads*time.Millisecond {
			t.Errorf("%d reads took %v", reads, took)
		}
	})
}
