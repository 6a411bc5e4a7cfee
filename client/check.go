package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/check"
	"turbotunnel/internal/ptproc"
	"turbotunnel/internal/scrub"
)

// checkSettings are what -check and its companions say.
type checkSettings struct {
	check bool
	file  string // of lines; "-" is stdin
	json  bool
	long  bool
}

// wanted tells whether a check is asked for, and not a tunnel.
func (c *checkSettings) wanted() bool { return c.check || c.file != "" }

// checkArguments is what is checked where the flags are followed by args: a bridge
// line, or what a forwarder is started with. What a line says is set at once; given are
// the arguments that are still to be set.
func (s *settings) checkArguments(args []string, given map[string]string) error {
	switch {
	case len(args) == 1 && !strings.ContainsAny(args[0], " =") && strings.Contains(args[0], "://"):
		given["url"] = args[0]
	case len(args) == 1:
		flags, err := s.tunnel.With(given)
		if err == nil { // as everywhere, the line overrides the flags
			s.tunnel, err = flags.WithBridgeLine(args[0])
		}
		clear(given)
		return err
	case len(args) == 2 && strings.Contains(args[1], "://") && !strings.Contains(args[0]+args[1], "="):
		given["url"] = args[1]
	case len(args) > 1:
		return fmt.Errorf("%d arguments: put the bridge line between quotes", len(args))
	case given["url"] == "" && s.checks.file == "":
		return errors.New("-check needs a bridge line between quotes, or -url, or -check-file")
	}
	return nil
}

// checkReport is what -json shows.
type checkReport struct {
	Verdict *check.Verdict        `json:"verdict"` // the best one
	Lines   []*check.BridgeReport `json:"lines"`
}

// runCheck checks what the command line names, and returns the verdict's exit code.
func runCheck(p *ptproc.Process, s settings) int {
	lines := []tunnel.Config{s.tunnel}
	if s.checks.file != "" {
		var err error
		if lines, err = linesOf(s.checks.file, s.tunnel); err != nil {
			p.Say("%v", err)
			return exitUsage
		}
	}
	// Not the process' own way to stdout, which shows whole lines only: a step's
	// name stands there while it is taken.
	printer := &check.Printer{Out: os.Stdout, Details: s.unsafe}
	var observer check.Observer = printer
	if s.checks.json {
		printer.Out, observer = io.Discard, check.Silent{}
	}
	report := checkReport{}
	for i, cfg := range lines {
		if len(lines) > 1 {
			observer.Title(fmt.Sprintf("Line %d of %d", i+1, len(lines)))
		}
		proxy, err := readProxy(s.proxy, cfg)
		if err != nil { // of env, which may say another one for each line
			p.Say("%v", err)
			return exitUsage
		}
		r, err := check.Bridge(p.Stopping(), cfg, check.Options{Long: s.checks.long, Secret: s.unsafe, Proxy: proxy}, observer)
		if err != nil {
			if p.Stopping().Err() != nil {
				err = errors.New("it was told to end")
			}
			p.Say("the check was not finished: %v", err)
			return exitFailure
		}
		r.Number = i + 1
		printer.Verdict(r.Verdict)
		sayBest(printer.Out, r, s.unsafe)
		report.Lines = append(report.Lines, r)
		if report.Verdict == nil || !report.Verdict.Works() && r.Verdict.Works() || r.Verdict.Exit == 0 {
			report.Verdict = r.Verdict
		}
	}
	if s.checks.json {
		if err := check.WriteJSON(os.Stdout, report); err != nil {
			p.Say("%v", err)
			return exitFailure
		}
	}
	return report.Verdict.Exit
}

// sayBest says which line works best here, without saying more of it than may be
// shown.
func sayBest(w io.Writer, r *check.BridgeReport, unsafe bool) {
	switch {
	case !unsafe && r.Change != "":
		fmt.Fprintf(w, "Better here: %s. With -unsafe-logging the whole line is shown, ready to paste.\n", r.Change)
	case r.Best != "" && r.Change != "":
		fmt.Fprintf(w, "Better here: %s. The line, for which ADDRESS and FINGERPRINT stay what they are:\nBridge turbo ADDRESS FINGERPRINT %s\n", r.Change, r.Best)
	case r.Best != "":
		fmt.Fprintf(w, "The line is the best for this place as it is:\nBridge turbo ADDRESS FINGERPRINT %s\n", r.Best)
	}
}

// maxLines is how many lines of a file are checked: each takes some seconds, or a
// minute where nothing works.
const maxLines = 100

// linesOf reads bridge lines from a file, which may be a whole torrc: other lines in it
// are passed over. The flags are the defaults.
func linesOf(path string, defaults tunnel.Config) ([]tunnel.Config, error) {
	in := io.Reader(os.Stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	var lines []tunnel.Config
	scanner := bufio.NewScanner(in)
	for number := 1; scanner.Scan(); number++ {
		line := strings.TrimPrefix(scanner.Text(), "\ufeff") // as some editors begin a file
		if !isOurs(line) {
			continue
		}
		cfg, err := defaults.WithBridgeLine(line)
		if err != nil {
			return nil, fmt.Errorf("line %d of the file: %s", number, scrub.Error(err))
		}
		if len(lines) == maxLines {
			return nil, fmt.Errorf("more than %d bridge lines in one file", maxLines)
		}
		lines = append(lines, cfg)
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("the file of lines: %w", err)
	}
	if len(lines) == 0 {
		return nil, errors.New("the file has no line with url= in it")
	}
	return lines, nil
}

// isOurs tells whether a line of a file is a bridge line of this transport, or may be
// meant as one. Of other ones, of bridges that need no transport and of all else that
// torrc has there is either no url=, or a word before it that names something else:
// a bridge of another transport, such as webtunnel, may have a URL, too.
func isOurs(line string) bool {
	line, _, _ = strings.Cut(line, "#")
	if !strings.Contains(line, "url=") {
		return false
	}
	first := strings.Fields(line)[0]
	if strings.EqualFold(first, "Bridge") {
		first = strings.Fields(line)[1]
	}
	return strings.EqualFold(first, method) || strings.ContainsAny(first, "=.:")
}
