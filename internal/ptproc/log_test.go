package ptproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

// capture makes goptlib write to the returned buffer during the test.
func capture(t *testing.T) *bytes.Buffer {
	var buf bytes.Buffer
	before := pt.Stdout
	pt.Stdout = &buf
	t.Cleanup(func() { pt.Stdout = before })
	return &buf
}

func TestLogLine(t *testing.T) {
	tor := capture(t)
	var file bytes.Buffer
	log := slog.New(newHandler(&file, LogConfig{}, true))
	log.With("session", "abc").WithGroup("g").Warn("peer at 192.0.2.1 said \"hé\x1b\n\"", AddrKey, "front", "next", "b.example",
		"err", &net.DNSError{Err: "no such host", Name: "front.example"}, "n", 7)
	// The file's line begins with the time.
	_, line, _ := strings.Cut(file.String(), " warning ")
	want := `peer at [scrubbed] said "hé\x1b\n" session=abc g.addr=[scrubbed] g.next=[scrubbed] g.err="lookup [scrubbed]: no such host" g.n=7` + "\n"
	if line != want {
		t.Errorf("file:\n got %q\nwant %q", line, want)
	}
	want = `LOG SEVERITY=warning MESSAGE="peer at [scrubbed] said \042h\134u00e9\134x1b\134n\042 session=abc g.addr=[scrubbed] g.next=[scrubbed] g.err=\042lookup [scrubbed]: no such host\042 g.n=7"` + "\n"
	if tor.String() != want {
		t.Errorf("tor:\n got %q\nwant %q", tor.String(), want)
	}
}

func TestUnsafeLogging(t *testing.T) {
	var file bytes.Buffer
	log := slog.New(newHandler(&file, LogConfig{Unsafe: true}, false))
	log.Info("peer at 192.0.2.1", AddrKey, "front.example", "err", errors.Join(errors.New("one"), errors.New("two\x1b")))
	_, line, _ := strings.Cut(file.String(), " info ")
	want := `peer at 192.0.2.1 addr=front.example err="one; two\x1b"` + "\n"
	if line != want {
		t.Errorf("got %q\nwant %q", line, want)
	}
}

func TestSeverities(t *testing.T) {
	tor := capture(t)
	log := slog.New(newHandler(new(bytes.Buffer), LogConfig{}, true))
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, LevelNotice, slog.LevelWarn, slog.LevelError} {
		log.Log(context.Background(), level, "m")
	}
	want := ""
	for _, severity := range []string{"info", "notice", "warning", "error"} {
		want += fmt.Sprintf("LOG SEVERITY=%s MESSAGE=\"m\"\n", severity)
	}
	if tor.String() != want {
		t.Errorf("got\n%swant\n%s", tor.String(), want)
	}
}

// What is below the level is not written; tor has levels of its own.
func TestLevel(t *testing.T) {
	for _, name := range Levels {
		level, err := ParseLevel(name)
		if err != nil {
			t.Fatal(err)
		}
		tor := capture(t)
		var file bytes.Buffer
		log := slog.New(newHandler(&file, LogConfig{Level: level}, true))
		want := ""
		for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, LevelNotice, slog.LevelWarn, slog.LevelError} {
			log.Log(context.Background(), l, "m")
			if l >= level {
				want += levelName(l) + " m\n"
			}
		}
		got := ""
		for line := range strings.Lines(file.String()) {
			got += line[len("2006-01-02 15:04:05 "):]
		}
		if got != want {
			t.Errorf("%s: got\n%swant\n%s", name, got, want)
		}
		if n := strings.Count(tor.String(), "LOG "); n != 4 {
			t.Errorf("%s: tor was told %d messages, want 4", name, n)
		}
	}
	if _, err := ParseLevel("loud"); err == nil {
		t.Error("there is a level called loud")
	}
}

// The same is hidden in an object as in a line.
func TestJSON(t *testing.T) {
	tor := capture(t)
	var file bytes.Buffer
	log := slog.New(newHandler(&file, LogConfig{JSON: true}, true))
	log.With("session", "abc").WithGroup("g").Warn("peer at 192.0.2.1 said \"hé\x1b\n\"", AddrKey, "front", "next", "b.example",
		"err", &net.DNSError{Err: "no such host", Name: "front.example"}, "n", 7, "any", netip.MustParseAddr("192.0.2.2"))
	_, rest, _ := strings.Cut(file.String(), `,"level":`)
	want := `"warning","msg":"peer at [scrubbed] said \"hé\\x1b\\n\"","session":"abc","g":{"addr":"[scrubbed]","next":"[scrubbed]","err":"lookup [scrubbed]: no such host","n":7,"any":"[scrubbed]"}}` + "\n"
	if rest != want {
		t.Errorf("file:\n got %s\nwant %s", rest, want)
	}
	if !strings.HasPrefix(tor.String(), "LOG SEVERITY=warning MESSAGE=\"peer at [scrubbed]") {
		t.Errorf("tor: %q", tor.String())
	}
}

func TestLongLineIsCut(t *testing.T) {
	for _, long := range []string{
		strings.Repeat("x", lineLimit) + "y",
		strings.Repeat("\x00 ", lineLimit),
		strings.Repeat("x", 1<<20),
		strings.Repeat("192.0.2.1 ", 1<<16),
	} {
		var file bytes.Buffer
		log := slog.New(newHandler(&file, LogConfig{}, false))
		log.Info(long)
		if n := file.Len(); n > lineLimit+100 {
			t.Errorf("the line is %d bytes long", n)
		}
		if !strings.HasSuffix(file.String(), " [cut]\n") || strings.Contains(file.String(), "192") {
			t.Errorf("the line ends in %q", file.String()[file.Len()-30:])
		}
	}
}

// tor gets lines that a pipe takes whole.
func TestLinesForTorAreShort(t *testing.T) {
	for _, long := range []string{strings.Repeat("x", 4064), strings.Repeat("x", 4065), strings.Repeat("\"", 1e4), strings.Repeat("\u00e9\x01 ", 1e4)} {
		tor := capture(t)
		slog.New(newHandler(new(bytes.Buffer), LogConfig{}, true)).Warn(long)
		n := tor.Len()
		if n > atomicLimit || n < atomicLimit-20 || !strings.HasSuffix(tor.String(), "\"\n") {
			t.Errorf("a line of %d bytes that ends in %q", n, tor.String()[n-10:])
		}
	}
}

func TestConcurrentLogging(t *testing.T) {
	var got bytes.Buffer
	w := newLineWriter(&got, nil)
	log := slog.New(newHandler(w, LogConfig{}, false))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 20 {
				log.With("i", i).Info("m", "k", "v")
			}
		})
	}
	wg.Wait()
	w.Close()
	for line := range strings.Lines(got.String()) {
		if !strings.Contains(line, " info m i=") || !strings.HasSuffix(line, " k=v\n") {
			t.Fatalf("torn line %q", line)
		}
	}
	if n := strings.Count(got.String(), "\n"); n != 160 {
		t.Errorf("%d lines, want 160", n)
	}
}

// A log file that is renamed is written no further after SIGHUP; one that cannot
// be opened again is.
func TestLogFileIsOpenedAgain(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	p := &Process{stderr: newLineWriter(new(bytes.Buffer), nil)}
	defer p.stderr.Close()
	if err := p.OpenLog(LogConfig{File: path}); err != nil {
		t.Fatal(err)
	}
	written := func(path string, lines int) bool {
		text, _ := os.ReadFile(path)
		return bytes.Count(text, []byte("\n")) == lines
	}
	wait := func(path string, lines int) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !written(path, lines); runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatalf("%s has not %d lines", path, lines)
			}
		}
	}
	p.Log().Info("one")
	wait(path, 1)
	os.Rename(path, path+".1")
	p.hangup()
	p.Log().Info("two")
	wait(path, 1)
	os.Rename(path, path+".2")
	os.Mkdir(path, 0o700)
	p.hangup() // which says so
	p.Log().Info("three")
	wait(path+".2", 3)
	if !written(path+".1", 1) {
		t.Error("the first file was written further")
	}
	p.logFile.Close()
	p.file.file.Close()
}

// A log that nobody reads, such as a named pipe, does not keep the program from ending.
func TestEndsWithALogThatNobodyReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil { // until it is full
		_, err = syscall.Write(reader, make([]byte, 1))
	}
	p := &Process{
		stdout: newLineWriter(new(bytes.Buffer), nil), stderr: newLineWriter(new(bytes.Buffer), nil),
		lifetime: newLifetime(sources{}, drainTime),
	}
	if err := p.OpenLog(LogConfig{File: path}); err != nil {
		t.Fatal(err)
	}
	p.Log().Info("nobody reads this")
	p.Close()
	syscall.Close(reader) // which whoever writes is told
	<-p.logFile.done
	p.file.file.Close()
}
