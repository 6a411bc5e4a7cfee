package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/common/tunnel"
)

// The clients are this program, started again as
//
//	load clients
//
// with many dialers of common/tunnel, each of which is a client with one session.
// It gets orders on stdin, answers each on stdout, and ends with its stdin.
const clientsCommand = "clients"

// What it can be ordered to do.
const (
	orderOpen  = "open"  // sessions with one stream each that asks for What
	orderPing  = "ping"  // a question and its answer on each stream
	orderBusy  = "busy"  // each stream carries all that it can from now on
	orderCount = "count" // how much each has carried
	orderBegin = "begin" // new sessions at a steady rate, each with a question
	orderClose = "close" // all that was opened
)

const (
	// opening is how many sessions are opened at the same time.
	opening = 20

	// patience is how long one session may take to open, or one question.
	patience = 30 * time.Second

	pingSize = 100 // bytes
)

type order struct {
	Do       string
	What     byte          // to open: what the streams ask the target for
	Config   tunnel.Config // to open, begin
	Sessions int           // to open, begin
	First    int           // to open: the first one's number
	Every    time.Duration // to begin: from one to the next
	AtOnce   int           // to begin: how many may be about to begin; others are late
}

type report struct {
	Counts []int64         // of bytes
	Took   []time.Duration // of those that have succeeded, sorted
	Failed []string        // of the others: why
	Error  string
}

// clients are the sessions of this process.
type clients struct {
	dialers []*tunnel.Dialer
	streams []tunnel.Stream
	counts  []atomic.Int64
	what    byte
	busy    sync.WaitGroup
}

func runClients(in io.Reader, out io.Writer) error {
	var c clients
	defer c.close()
	orders, reports := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := reports.Encode(c.do(o)); err != nil {
			return err
		}
	}
}

func (c *clients) do(o order) (r report) {
	switch o.Do {
	case orderOpen:
		r = c.open(o)
	case orderPing:
		r = c.each(func(i int) error { return ping(c.streams[i]) })
	case orderBusy:
		c.start()
	case orderCount:
		for i := range c.counts {
			r.Counts = append(r.Counts, c.counts[i].Load())
		}
	case orderBegin:
		r = begin(o)
	case orderClose:
		c.close()
	default:
		r.Error = fmt.Sprintf("what is %q?", o.Do)
	}
	return r
}

func (c *clients) open(o order) report {
	c.what = o.What
	c.dialers = make([]*tunnel.Dialer, o.Sessions)
	c.streams = make([]tunnel.Stream, o.Sessions)
	c.counts = make([]atomic.Int64, o.Sessions)
	return c.each(func(i int) (err error) {
		c.dialers[i], c.streams[i], err = dial(o.Config, ask(o.What, o.First+i))
		if err == nil && o.What == askEcho {
			err = ping(c.streams[i])
		}
		return err
	})
}

// each does something for all sessions, some at the same time.
func (c *clients) each(one func(int) error) report {
	var t tally
	turn := make(chan struct{}, opening)
	for i := range c.dialers {
		turn <- struct{}{}
		t.do(func() error {
			defer func() { <-turn }()
			return one(i)
		})
	}
	return t.report()
}

// start has each stream carry all that it can.
func (c *clients) start() {
	for i, st := range c.streams {
		if st == nil {
			continue // it could not be opened, which was reported
		}
		c.busy.Go(func() {
			if c.what == askSource {
				count(&c.counts[i], st) //nolint:errcheck // its count stands still then
				return
			}
			for p := make([]byte, lump); ; {
				n, err := st.Write(p)
				c.counts[i].Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
}

func (c *clients) close() {
	var all sync.WaitGroup
	for _, d := range c.dialers {
		if d != nil {
			all.Go(func() { d.Close() })
		}
	}
	all.Wait()
	c.busy.Wait()
	c.dialers, c.streams, c.counts = nil, nil, nil
}

// begin opens a session each o.Every, asks a question, and closes it.
func begin(o order) report {
	var t tally
	turn := make(chan struct{}, o.AtOnce)
	for start, i := time.Now(), 0; i < o.Sessions; i++ {
		time.Sleep(time.Until(start.Add(time.Duration(i) * o.Every)))
		turn <- struct{}{}
		t.do(func() error {
			defer func() { <-turn }()
			d, st, err := dial(o.Config, ask(askEcho, i))
			if d != nil {
				defer func() { go d.Close() }() // the farewell is not what is measured
			}
			if err == nil {
				err = ping(st)
			}
			return err
		})
	}
	return t.report()
}

// dial makes a client with a session and a stream, which says asked.
func dial(cfg tunnel.Config, asked []byte) (*tunnel.Dialer, tunnel.Stream, error) {
	d, err := tunnel.NewDialer(cfg, tunnel.Options{})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	st, err := d.Dial(ctx)
	if err == nil {
		_, err = st.Write(asked)
	}
	return d, st, err
}

// ping asks a question on a stream and waits for its answer.
func ping(st tunnel.Stream) error {
	if st == nil {
		return errors.New("it was not opened")
	}
	st.SetDeadline(time.Now().Add(patience)) //nolint:errcheck // a stream can
	defer st.SetDeadline(time.Time{})        //nolint:errcheck // likewise
	question := bytes.Repeat([]byte{'?'}, pingSize)
	if _, err := st.Write(question); err != nil {
		return err
	}
	answer := make([]byte, pingSize)
	if _, err := io.ReadFull(st, answer); err != nil {
		return err
	}
	if !bytes.Equal(answer, question) {
		return errors.New("another answer")
	}
	return nil
}

// A tally counts what happens many times at once.
type tally struct {
	group sync.WaitGroup
	mu    sync.Mutex
	r     report // guarded by mu
}

func (t *tally) do(one func() error) {
	t.group.Go(func() {
		start := time.Now()
		err := one()
		t.mu.Lock()
		defer t.mu.Unlock()
		if err != nil {
			t.r.Failed = append(t.r.Failed, err.Error())
		} else {
			t.r.Took = append(t.r.Took, time.Since(start))
		}
	})
}

func (t *tally) report() report {
	t.group.Wait()
	slices.Sort(t.r.Took)
	return t.r
}
