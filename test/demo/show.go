package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A show prints lines, each with the time since the start in seconds.
type show struct {
	out      *os.File
	start    time.Time
	terminal bool // a line may be written over
}

func newShow(out *os.File) *show {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &show{out: out, start: time.Now(), terminal: err == nil}
}

func (s *show) prefix() string { return fmt.Sprintf("%6.1f s  ", time.Since(s.start).Seconds()) }

func (s *show) line(format string, args ...any) {
	fmt.Fprintf(s.out, s.prefix()+format+"\n", args...)
}

// A meter is a writer that shows how much has been written to it, and how fast.
// On a terminal its line is written over as it goes.
type meter struct {
	show  *show
	name  string
	size  int64
	done  int64
	start time.Time
	shown time.Time
}

// meterInterval is how often a terminal's line is written over.
const meterInterval = 200 * time.Millisecond

func (s *show) meter(name string, size int64) *meter {
	now := time.Now()
	return &meter{show: s, name: name, size: size, start: now, shown: now}
}

func (m *meter) Write(p []byte) (int, error) {
	m.done += int64(len(p))
	if m.show.terminal && time.Since(m.shown) > meterInterval {
		m.shown = time.Now()
		fmt.Fprintf(m.show.out, "\r%s%s", m.show.prefix(), m.text())
	}
	return len(p), nil
}

func (m *meter) text() string {
	took := time.Since(m.start).Seconds()
	return fmt.Sprintf("%s: %4.1f of %.1f MB, %5.1f MB/s", m.name, float64(m.done)/1e6, float64(m.size)/1e6, float64(m.done)/1e6/took)
}

// cut ends the meter's line, so that something else can be said.
func (m *meter) cut() {
	if m.show.terminal {
		fmt.Fprintln(m.show.out)
	}
}

// end shows the result: all has arrived and was checked.
func (m *meter) end() {
	if m.show.terminal {
		fmt.Fprint(m.show.out, "\r")
	}
	m.show.line("%s, every byte right", m.text())
}
