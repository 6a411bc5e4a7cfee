package ptproc

import (
	"bytes"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stuck := io.Pipe()
		w := newLineWriter(stuck, droppedNote)
		line := []byte(strings.Repeat("x", 1023) + "\n")
		w.Write(line)
		synctest.Wait() // the first line is with the pipe now
		const extra = 5
		for range pendingLimit/len(line) + extra {
			w.Write(line)
		}
		if len(w.pending) != pendingLimit {
			t.Errorf("%d bytes wait, want the limit of %d", len(w.pending), pendingLimit)
		}

		// Then somebody reads after all.
		go w.Close()
		var got bytes.Buffer
		go func() { <-w.done; stuck.Close() }()
		io.Copy(&got, r)
		if n := strings.Count(got.String(), string(line)); n != pendingLimit/len(line)+1 {
			t.Errorf("%d lines arrived", n)
		}
		if want := droppedNote(extra); !strings.HasSuffix(got.String(), want) {
			t.Errorf("the end does not tell what is missing: want %q", want)
		}
	})
}

func TestCloseDoesNotWaitForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stuck := io.Pipe()
		w := newLineWriter(stuck, nil)
		io.WriteString(w, "never read\n")
		start := time.Now()
		w.Close()
		if took := time.Since(start); took != flushTime {
			t.Errorf("Close took %v, want %v", took, flushTime)
		}
		r.Close() // the reader has gone: the goroutine ends, see goleak
		<-w.done
	})
}

func TestCloseFlushes(t *testing.T) {
	var got bytes.Buffer
	w := newLineWriter(&got, nil)
	io.WriteString(w, "ENV-ERROR last words\n")
	w.Close()
	if got.String() != "ENV-ERROR last words\n" {
		t.Errorf("got %q", got.String())
	}
}

// A halting writer takes some bytes of a write and then says that it would have
// to wait, as a pipe does to which somebody has set O_NONBLOCK.
type haltingWriter struct {
	bytes.Buffer
	takes []int
}

func (w *haltingWriter) Write(p []byte) (int, error) {
	if len(w.takes) == 0 {
		return w.Buffer.Write(p)
	}
	n := min(w.takes[0], len(p))
	w.takes = w.takes[1:]
	w.Buffer.Write(p[:n])
	return n, syscall.EAGAIN
}

func TestNoLineIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dst := &haltingWriter{takes: []int{0, 3, 0, 5}}
		w := newLineWriter(dst, nil)
		io.WriteString(w, "one line\nand another\n")
		w.Close()
		if got := dst.String(); got != "one line\nand another\n" {
			t.Errorf("got %q", got)
		}
	})
}

// What is in a pipe whose reader has stopped are whole lines, so that they are
// still that when the program has ended.
func TestFullPipeHoldsWholeLines(t *testing.T) {
	r, stuck, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w := newLineWriter(stuck, nil)
	line := strings.Repeat("x", 700) + "\n"
	for range pendingLimit / len(line) {
		io.WriteString(w, line)
	}
	for range pendingLimit / len(line) {
		io.WriteString(w, line)
	}
	w.Close() // waits for flushTime
	stuck.SetWriteDeadline(time.Unix(1, 0))
	<-w.done
	stuck.Close()
	got, err := io.ReadAll(r)
	r.Close()
	if err != nil || len(got) == 0 || len(got)%len(line) != 0 || got[len(got)-1] != '\n' {
		t.Errorf("%d bytes of lines of %d, %v", len(got), len(line), err)
	}
}
