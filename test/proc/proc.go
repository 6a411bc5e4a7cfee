// Package proc runs other programs for the tests and the demo, and ends each
// of them, with everything it started, by its process id.
//
// It works on Linux: it reads /proc, and a program dies with the thread that
// started it.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Grace is how long Stop waits for a program to end by itself, and then for
// the programs that it started, before it kills them. tor can deadlock on its
// way out (seen with 0.4.9.11), so the kill is needed. A healthy tor and a
// healthy transport take well under two seconds on a busy machine.
const Grace = 5 * time.Second

// pollInterval is how often a state is looked at that gives no notice.
const pollInterval = 20 * time.Millisecond

// A Process is a program that Start started, in a process group of its own.
// It is safe for concurrent use.
type Process struct {
	name   string
	log    string
	cmd    *exec.Cmd
	exited chan struct{} // closed when the program has ended
	reap   chan struct{} // closed by the first Stop or Kill: the id may be given away
	done   chan struct{} // closed when the program was reaped and left is set
	stop   chan struct{} // holds one token: the right to be the first Stop or Kill
	left   error         // of Stop, before done is closed
	status error         // of the program, before done is closed
}

// Start starts cmd under a name used in errors. What the program prints goes
// to the end of the file log, except where cmd has a Stdout or Stderr already.
// If the caller's process dies, the program is killed.
//
// The caller must call Stop, also when the program ends by itself.
func Start(name, log string, cmd *exec.Cmd) (*Process, error) {
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: its log: %w", name, err)
	}
	defer out.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = out
	}
	// The group lets Stop find what the program leaves behind, and keeps a
	// Ctrl-C on the terminal from it: its owner decides when it ends.
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	p := &Process{
		name:   name,
		log:    log,
		cmd:    cmd,
		exited: make(chan struct{}),
		reap:   make(chan struct{}),
		done:   make(chan struct{}),
		stop:   make(chan struct{}, 1),
	}
	p.stop <- struct{}{}
	go p.wait()
	return p, nil
}

// StartServing is Start, and returns when somebody listens on addr, an IPv4
// host:port. When that does not come about before ctx or the program ends,
// nothing is left running.
func StartServing(ctx context.Context, name, log string, cmd *exec.Cmd, addr string) (*Process, error) {
	p, err := Start(name, log, cmd)
	if err != nil {
		return nil, err
	}
	err = p.Wait(ctx, "a listener on "+addr, func() error { return Listening(addr) })
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

// wait follows the program from its start until Stop is through with it. The
// program is reaped last, so that its id, which is its group's, cannot go to
// another one while Stop uses it.
func (p *Process) wait() {
	for {
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	close(p.exited)
	<-p.reap
	p.left = p.endGroup()
	p.status = p.cmd.Wait()
	close(p.done)
}

// Exited is closed when the program has ended. What it started may still run.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// ID is the program's process id.
func (p *Process) ID() int { return p.cmd.Process.Pid }

// Log is the name of the file that holds what the program printed.
func (p *Process) Log() string { return p.log }

// Signal sends the program a signal. It is no error if it has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: signal %v: %w", p.name, sig, err)
	}
	return nil
}

// Stop ends the program: SIGTERM, Grace, SIGKILL. The programs that it started
// have another Grace to end by themselves; if one does not, it is killed and
// named in the error. Calling Stop or Kill again waits for the first call and
// returns the same.
func (p *Process) Stop() error {
	return p.end(func() error {
		err := p.Signal(syscall.SIGTERM)
		select {
		case <-p.exited:
		case <-time.After(Grace):
			err = errors.Join(err, p.Signal(syscall.SIGKILL))
		}
		return err
	})
}

// Kill ends the program and all that it started at once, by SIGKILL, as if the
// machine under them had failed.
func (p *Process) Kill() error {
	return p.end(func() error {
		if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("%s: killing it: %w", p.name, err)
		}
		return nil
	})
}

// end has by end the program, and waits for it, if nobody has done that yet.
func (p *Process) end(by func() error) error {
	select {
	case <-p.stop:
		err := by()
		<-p.exited
		close(p.reap)
		<-p.done
		return errors.Join(err, p.left)
	default:
		<-p.done
		return p.left
	}
}

// Status is how the program ended, as [exec.Cmd.Wait] tells it: nil for exit
// code 0. It is valid after Stop.
func (p *Process) Status() error {
	<-p.done
	return p.status
}

// endGroup waits until nothing of the program's group runs, and kills what
// still does after Grace.
func (p *Process) endGroup() error {
	pgid := p.cmd.Process.Pid
	for end := time.Now().Add(Grace); ; time.Sleep(pollInterval) {
		left := group(pgid)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			err := fmt.Errorf("%s left behind, killed now: %v", p.name, left)
			return errors.Join(err, syscall.Kill(-pgid, syscall.SIGKILL))
		}
	}
}

// Group are the ids of all that runs in the program's group: itself and what it
// started.
func (p *Process) Group() []int {
	var ids []int
	for id := range group(p.cmd.Process.Pid) {
		ids = append(ids, id)
	}
	return ids
}

// group returns the members of a process group that run: ids and names.
func group(pgid int) map[int]string {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		panic(err) // the pattern is constant
	}
	members := make(map[int]string)
	for _, name := range stats {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended since
		}
		// proc(5): id (name) state parent group ...; a name may hold anything.
		open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
		if open < 0 || end < open {
			continue
		}
		fields := strings.Fields(string(data[end+1:]))
		if len(fields) < 3 || fields[0] == "Z" || fields[2] != strconv.Itoa(pgid) {
			continue
		}
		if id, err := strconv.Atoi(string(bytes.TrimSpace(data[:open]))); err == nil {
			members[id] = string(data[open+1 : end])
		}
	}
	return members
}

// Tail returns the last lines of the program's log, for an error's text.
func (p *Process) Tail() string { return Tail(p.log) }

// tailSize is how many bytes of a log Tail returns at most: about 40 lines.
const tailSize = 4096

// Tail returns the last lines of the file name, or why there are none.
func Tail(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, err = f.Seek(max(0, size-tailSize), io.SeekStart)
		if err != nil {
			return err.Error()
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, tailSize))
	if err != nil {
		return err.Error()
	}
	if len(data) == tailSize {
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			data = data[i+1:]
		}
	}
	return name + ":\n" + string(data)
}

// Wait calls check until it returns nil, ctx ends, or the program ends. Its
// error says what was waited for, what check said last, and shows the log.
func (p *Process) Wait(ctx context.Context, what string, check func() error) error {
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended, waiting for %s: %w\n%s", p.name, what, err, p.Tail())
		case <-ctx.Done():
			return fmt.Errorf("%s: waiting for %s: %w: %w\n%s", p.name, what, ctx.Err(), err, p.Tail())
		case <-time.After(pollInterval):
		}
	}
}
