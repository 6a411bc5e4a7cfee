package lull

import (
	"testing"
	"testing/synctest"
	"time"
)

// A line is a connection on which so much comes each time that so long has passed.
type line struct {
	bytes int
	every time.Duration
	most  int // bytes that a read returns; 0: as many as it may
	read  int // bytes
	start time.Time
}

// Read returns what has come, which is something.
func (c *line) Read(p []byte) (int, error) {
	if c.most > 0 {
		p = p[:min(len(p), c.most)]
	}
	for {
		if n := int(time.Since(c.start)/c.every)*c.bytes - c.read; n > 0 {
			n = min(n, len(p))
			c.read += n
			return n, nil
		}
		time.Sleep(c.every - time.Since(c.start)%c.every)
	}
}

// batches is how often a reader with lulls for a round trip has to wait, while so
// many bytes come.
func batches(trip time.Duration, c *line, total int) (n int) {
	c.start = time.Now()
	var l Lull
	l.Trip(trip)
	for buf := make([]byte, 20<<10); c.read < total; {
		began := time.Now()
		l.Read(c, buf)
		if time.Since(began) > 0 {
			n++
		}
	}
	return n
}

func TestLull(t *testing.T) {
	for name, c := range map[string]struct {
		trip     time.Duration
		line     line
		total    int
		from, to int
	}{
		"100 Mbit/s":           {100 * time.Millisecond, line{bytes: 16 << 10, every: 1300 * time.Microsecond}, 16 << 20, 320, 360},
		"packets":              {100 * time.Millisecond, line{bytes: 1460, every: 116 * time.Microsecond}, 16 << 20, 350, 900},
		"a path without delay": {time.Millisecond, line{bytes: 16 << 10, every: 1300 * time.Microsecond}, 16 << 20, 1024, 1024},
		"an unknown path":      {0, line{bytes: 16 << 10, every: 1300 * time.Microsecond}, 16 << 20, 1024, 1024},
		"a conversation":       {100 * time.Millisecond, line{bytes: 1000, every: 2 * time.Millisecond}, 1e6, 1000, 1000},
		"few and large":        {100 * time.Millisecond, line{bytes: 16 << 10, every: 10 * time.Millisecond}, 16 << 20, 1024, 1024},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if n := batches(c.trip, &c.line, c.total); n < c.from || n > c.to {
					t.Errorf("%d batches, want %d to %d", n, c.from, c.to)
				}
			})
		})
	}
}

// Reads that return a part of what there is are not slowed down.
func TestParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := line{bytes: 16 << 10, every: 250 * time.Microsecond, most: 8 << 10}
		const total = 16 << 20
		start := time.Now()
		batches(100*time.Millisecond, &c, total)
		if took, most := time.Since(start), total/(16<<10)*c.every+5*time.Millisecond; took > most {
			t.Errorf("it took %v, want %v", took, most)
		}
	})
}

// What is said after a pause is read at once.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := line{bytes: 64 << 10, every: time.Second, start: time.Now()}
		var l Lull
		l.Trip(100 * time.Millisecond)
		for range 10 {
			l.Read(&c, make([]byte, 128<<10))
		}
		if took := time.Since(c.start); took != 10*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// A copier is a connection on which always more has come than a read takes, by a
// processor that takes so long for each.
type copier time.Duration

func (c copier) Read(p []byte) (int, error) {
	time.Sleep(time.Duration(c))
	return len(p), nil
}

// A slow processor, or one that has much to do, is not taken for an empty connection.
func TestSlowProcessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const reads, each = 100, 2 * waiting
		var l Lull
		l.Trip(100 * time.Millisecond)
		start := time.Now()
		for range reads {
			l.Read(copier(each), make([]byte, 16<<10))
		}
		if took := time.Since(start); took != reads*each {
			t.Errorf("it took %v, want %v", took, reads*each)
		}
	})
}
