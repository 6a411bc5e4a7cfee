package duplex

import (
	"bytes"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	"turbotunnel/common/engine"
)

// loop is a Session whose stream receives what it sends.
type loop struct{}

func (l *loop) Written(s *Stream) {
	var buf [100]byte
	for s.Buffered() < 1000 {
		n := s.Take(buf[:])
		if n == 0 {
			break
		}
		s.Deliver(buf[:n])
	}
	if s.TakeEnd() {
		s.End(io.EOF)
	}
}

func (l *loop) Consumed(s *Stream, n int) { l.Written(s) }

// TestWritesStayTogether: of Writes at the same time one comes after the
// other, however long each of them blocks.
func TestWritesStayTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const writers, size = 5, 1 << 20
		var mu sync.Mutex
		s := New(&mu, new(loop), nil, nil)
		var group sync.WaitGroup
		for i := range writers {
			group.Go(func() {
				if n, err := s.Write(bytes.Repeat([]byte{byte(i)}, size)); n != size || err != nil {
					t.Errorf("Write: %d, %v", n, err)
				}
			})
		}
		seen := make(map[byte]bool)
		block := make([]byte, size)
		for range writers {
			if _, err := io.ReadFull(s, block); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(block, bytes.Repeat(block[:1], size)) || seen[block[0]] {
				t.Errorf("the bytes of two Writes are mixed")
			}
			seen[block[0]] = true
		}
		group.Wait()
		s.CloseWrite()
		if n, err := s.Read(block); n != 0 || err != io.EOF {
			t.Errorf("Read: %d, %v", n, err)
		}
	})
}

// TestReadersShare: bytes that one Read leaves wake another.
func TestReadersShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		s := New(&mu, new(loop), nil, nil)
		var group sync.WaitGroup
		for range 3 {
			group.Go(func() {
				if n, err := s.Read(make([]byte, 1)); n != 1 || err != nil {
					t.Errorf("Read: %d, %v", n, err)
				}
			})
		}
		synctest.Wait()
		s.Write([]byte("abc"))
		group.Wait()
	})
}

// TestOver: a stream is over when each direction is.
func TestOver(t *testing.T) {
	type step func(s *Stream)
	end := func(s *Stream) { s.End(io.EOF) }
	stopped := (*Stream).Stopped
	sendEnd := func(s *Stream) {
		s.mu.Unlock()
		s.CloseWrite()
		s.mu.Lock()
		s.TakeEnd()
	}
	sendStop := func(s *Stream) {
		s.mu.Unlock()
		s.Close()
		s.mu.Lock()
		s.TakeStop()
	}
	abort := func(s *Stream) { s.Abort(engine.ErrReset) }
	for name, test := range map[string]struct {
		steps []step
		over  bool
	}{
		"nothing":          {nil, false},
		"half received":    {[]step{end}, false},
		"half sent":        {[]step{sendEnd}, false},
		"both":             {[]step{end, sendEnd}, true},
		"stopped":          {[]step{stopped}, false},
		"stopped, ended":   {[]step{stopped, end}, true},
		"closed, not sent": {[]step{sendStop}, false},
		"closed, sent":     {[]step{sendStop, func(s *Stream) { s.TakeEnd() }}, true},
		"aborted":          {[]step{abort}, true},
	} {
		var mu sync.Mutex
		s := New(&mu, silent{}, nil, nil)
		mu.Lock()
		for _, step := range test.steps {
			step(s)
		}
		if s.Over() != test.over {
			t.Errorf("%s: over is %t", name, s.Over())
		}
		mu.Unlock()
	}
}

type silent struct{}

func (silent) Written(*Stream)       {}
func (silent) Consumed(*Stream, int) {}

func TestQueue(t *testing.T) {
	var q queue
	r := rand.New(rand.NewPCG(1, 1))
	source := make([]byte, 1<<20)
	for i := range source {
		source[i] = byte(r.Uint32())
	}
	var got []byte
	rest := source
	for len(rest) > 0 || q.n > 0 {
		n := min(r.IntN(3*chunkSize), len(rest))
		q.write(rest[:n])
		rest = rest[n:]
		buf := make([]byte, r.IntN(3*chunkSize))
		held := q.n
		k := q.read(buf)
		if k != min(held, len(buf)) || q.n != held-k {
			t.Fatalf("read %d into %d of %d, %d left", k, len(buf), held, q.n)
		}
		got = append(got, buf[:k]...)
	}
	if !bytes.Equal(got, source) {
		t.Error("other bytes came out")
	}
	if q.head != nil || q.tail != nil {
		t.Error("an empty queue holds memory")
	}
	q.write(source)
	q.clear()
	if q.head != nil || q.n != 0 {
		t.Error("a cleared queue holds memory")
	}
}
