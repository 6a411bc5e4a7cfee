package ptproc

import (
	"bytes"
	"io"
	"strings"
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
