// Package check looks at a way to a server, step by step, and says in plain words
// what works and what does not: for people whose tunnel does not come up, and for
// those whom they ask.
//
// It speaks no protocol of its own: it asks package front to resolve, connect and
// shake hands, package carrier for a session, and that session's Path for what the
// detectors have learned. A step is a function with a name, what it has learned,
// and what follows for the verdict.
//
// What steps and verdicts say by themselves may be shown to anybody: they name no
// address, no key and no path. Those stand in the Details of a step, and in Best.
package check

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"
)

// A State is how a step has ended.
type State string

// The states.
const (
	OK      State = "ok"
	Odd     State = "odd" // it works, with something to know
	Failed  State = "failed"
	Skipped State = "skipped"
)

// mark is how a state looks.
func (s State) mark() string {
	switch s {
	case OK:
		return "✓"
	case Odd:
		return "!"
	case Failed:
		return "✗"
	}
	return "-"
}

// A Step is one thing that was looked at.
type Step struct {
	Name    string        `json:"name"`
	State   State         `json:"state"`
	Took    time.Duration `json:"-"`
	Millis  int64         `json:"ms"`
	Text    string        `json:"text"`             // what was learned
	Details string        `json:"detail,omitempty"` // addresses and the like
}

// A Verdict is what a check comes to.
type Verdict struct {
	Name string `json:"name"`
	Exit int    `json:"exit"` // the program's exit code
	Text string `json:"text"` // what is the matter
	Mend string `json:"mend"` // what to do
}

// Works tells whether the tunnel can be used.
func (v *Verdict) Works() bool { return v.Exit == 0 || v.Exit >= firstCaveat }

// An Observer is told of the steps while they are taken.
type Observer interface {
	// Title begins a group of steps.
	Title(text string)

	// Begin says that the step of that name begins.
	Begin(name string)

	// Waits says, now and then, that the step goes on.
	Waits()

	// End says what came of it.
	End(Step)
}

// A Printer writes what it is told as text, a step a line.
type Printer struct {
	Out     io.Writer
	Details bool // show addresses
}

// Title implements Observer.
func (p *Printer) Title(text string) { fmt.Fprintf(p.Out, "%s\n", text) }

// Begin implements Observer. The line is completed by End.
func (p *Printer) Begin(name string) { fmt.Fprintf(p.Out, "  %-13s", name) }

// Waits implements Observer: a dot shows that there is nothing but to wait.
func (p *Printer) Waits() { fmt.Fprint(p.Out, ".") }

// End implements Observer.
func (p *Printer) End(s Step) {
	took := "       -"
	if s.State != Skipped {
		took = fmt.Sprintf("%8s", timeText(s.Took))
	}
	fmt.Fprintf(p.Out, "%s %s  %s\n", s.State.mark(), took, s.Text)
	if p.Details && s.Details != "" {
		fmt.Fprintf(p.Out, "  %-13s  %8s  %s\n", "", "", s.Details)
	}
}

// timeText is a time in the unit that fits it.
func timeText(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	default:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
}

// Verdict writes a verdict, wrapped.
func (p *Printer) Verdict(v *Verdict) {
	fmt.Fprintf(p.Out, "%s\n", wrap("Verdict: "+v.Text, 78))
	if v.Mend != "" {
		fmt.Fprintf(p.Out, "%s\n", wrap("What to do: "+v.Mend, 78))
	}
}

// wrap breaks text into lines of at most width letters.
func wrap(text string, width int) string {
	var b strings.Builder
	at := 0
	for _, word := range strings.Fields(text) {
		n := len([]rune(word))
		switch {
		case at == 0:
		case at+1+n > width:
			b.WriteByte('\n')
			at = 0
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	return b.String()
}

// Silent is an Observer that does nothing.
type Silent struct{}

// Title implements Observer.
func (Silent) Title(string) {}

// Begin implements Observer.
func (Silent) Begin(string) {}

// Waits implements Observer.
func (Silent) Waits() {}

// End implements Observer.
func (Silent) End(Step) {}

// A Recorder takes steps, tells an Observer, and keeps them.
type Recorder struct {
	Observer
	Steps  []Step
	Secret bool // details are kept
}

// plain is a text without what moves a terminal's cursor or changes its colours:
// errors may repeat what somebody on the way has said.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

// A Finding is what a step has learned.
type Finding struct {
	State   State // "" is OK
	Text    string
	Details string
}

// waitsEvery is how often it is said that a step goes on: most have ended before.
const waitsEvery = 10 * time.Second

// Take takes a step, and returns how it has ended.
func (r *Recorder) Take(name string, look func() Finding) State {
	r.Begin(name)
	begun := time.Now()
	f := r.watch(look)
	if f.State == "" {
		f.State = OK
	}
	s := Step{Name: name, State: f.State, Took: time.Since(begun), Text: plain(f.Text), Details: plain(f.Details)}
	s.Millis = s.Took.Milliseconds()
	r.End(s)
	if !r.Secret {
		s.Details = ""
	}
	r.Steps = append(r.Steps, s)
	return s.State
}

// watch takes a look, and tells the Observer while it goes on.
func (r *Recorder) watch(look func() Finding) Finding {
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		ticker := time.NewTicker(waitsEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				r.Waits()
			case <-done:
				return
			}
		}
	})
	defer watching.Wait()
	defer close(done)
	return look()
}

// WriteJSON writes a report as JSON.
func WriteJSON(w io.Writer, report any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(report)
}
