package main

import (
	"fmt"
	"image/color"
	"path/filepath"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

var colours = []color.Color{
	color.RGBA{0x1b, 0x6c, 0xa8, 0xff},
	color.RGBA{0xd9, 0x8c, 0x1f, 0xff},
	color.RGBA{0x4a, 0x93, 0x5b, 0xff},
	color.RGBA{0x9b, 0x4f, 0x96, 0xff},
}

// bars is a chart of groups of bars. A value of 0 has no bar.
type bars struct {
	title, axis string
	groups      []string
	names       []string    // of the bars in a group
	values      [][]float64 // by name, by group
	line        float64     // across all groups; 0: none
}

func (c bars) save(name string) error {
	p := plot.New()
	p.Title.Text = c.title
	p.X.Label.Text = c.axis
	p.X.Min = 0
	p.Add(plotter.NewGrid())
	// Horizontal, because the groups have long names; the first one on top.
	n := len(c.groups)
	labels := make([]string, n)
	for i, g := range c.groups {
		labels[n-1-i] = g
	}
	const width = 7 // points
	for k, values := range c.values {
		v := make(plotter.Values, n)
		for i, x := range values {
			v[n-1-i] = x
		}
		b, err := plotter.NewBarChart(v, vg.Points(width))
		if err != nil {
			return err
		}
		b.Horizontal = true
		b.LineStyle.Width = 0
		b.Color = colours[k%len(colours)]
		b.Offset = vg.Points(width * (float64(len(c.values)-1)/2 - float64(k)))
		p.Add(b)
		p.Legend.Add(c.names[k], b)
	}
	p.Legend.Top = true
	p.NominalY(labels...)
	if c.line > 0 {
		l, err := plotter.NewLine(plotter.XYs{{X: c.line, Y: -0.5}, {X: c.line, Y: float64(n) - 0.5}})
		if err != nil {
			return err
		}
		l.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
		p.Add(l)
		p.X.Max = max(p.X.Max, c.line*1.02)
	}
	p.X.Max *= 1.25 // room for the legend
	height := vg.Points(float64(n*(len(c.values)*width+12) + 90))
	return p.Save(9*vg.Inch, height, name)
}

// plot writes the plots and returns the Markdown that shows them.
func (r *results) plot(dir string) (string, error) {
	var s strings.Builder
	show := func(name, what string, save func(string) error) error {
		if err := save(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Fprintf(&s, "![%s](%s)\n\n", what, name)
		return nil
	}
	if len(r.Figures) == 0 {
		return "", nil
	}
	if r.Suite == "engines" {
		c := r.engineBars()
		err := show("engines-throughput.svg", c.title, c.save)
		return s.String(), err
	}
	c := r.pathBars()
	if err := show("benchmarks-throughput.svg", c.title, c.save); err != nil {
		return "", err
	}
	if c = r.delayBars(); len(c.groups) > 0 {
		if err := show("benchmarks-delay.svg", c.title, c.save); err != nil {
			return "", err
		}
	}
	for _, f := range r.Figures {
		if f.Series == nil {
			continue
		}
		name := "benchmarks-resets.svg"
		if f.Resumed != 0 {
			name = "benchmarks-outage.svg"
		}
		if strings.Contains(f.Name, "dead") {
			name = "benchmarks-dead.svg"
		}
		if err := show(name, "Over time: "+f.Name, f.overTime); err != nil {
			return "", err
		}
	}
	return s.String(), nil
}

func (r *results) pathBars() bars {
	c := bars{
		title: "One stream, as a share of raw HTTP/2 on the same path", axis: "share of raw",
		names: []string{"down", "up", "as meek, down", "as meek, up"}, values: make([][]float64, 4), line: 1,
	}
	for _, f := range r.Figures {
		if f.Resumed != 0 {
			continue // most of that transfer was an outage
		}
		c.groups = append(c.groups, f.Name)
		for i, x := range []float64{share(f.Down, f.Raw.Down), share(f.Up, f.Raw.Up), share(f.Raw.MeekDown, f.Raw.Down), share(f.Raw.MeekUp, f.Raw.Up)} {
			c.values[i] = append(c.values[i], x)
		}
	}
	return c
}

func (r *results) delayBars() bars {
	c := bars{
		title: "Delays", axis: "round-trip times of the path",
		names: []string{"first stream of all", "new stream", "ping, idle", "ping beside a download"}, values: make([][]float64, 4), line: 1,
	}
	for _, f := range r.Figures {
		if f.First == 0 || f.RTT == 0 {
			continue
		}
		c.groups = append(c.groups, f.Name)
		for i, x := range []time.Duration{f.First, f.Open, f.Ping, f.Loaded} {
			c.values[i] = append(c.values[i], float64(x)/float64(f.RTT))
		}
	}
	return c
}

func (r *results) engineBars() bars {
	c := bars{title: "One stream, the slower of down and up, as a share of raw HTTP/2", axis: "share of raw", line: 1}
	at := make(map[string]int)
	for _, f := range r.Figures {
		if strings.HasSuffix(f.Engine, beforeMark) {
			continue
		}
		if _, ok := at[f.Engine]; !ok {
			at[f.Engine] = len(c.names)
			c.names = append(c.names, f.Engine)
			c.values = append(c.values, nil)
		}
		if n := len(c.groups); n == 0 || c.groups[n-1] != f.Path {
			c.groups = append(c.groups, f.Path)
		}
		k := at[f.Engine]
		c.values[k] = append(c.values[k], min(share(f.Down, f.Raw.Down), share(f.Up, f.Raw.Up)))
	}
	return c
}

// overTime shows what arrived while connections were cut or the path was down.
func (f *figures) overTime(name string) error {
	p := plot.New()
	p.Title.Text = f.Name
	p.X.Label.Text = "seconds"
	p.Y.Label.Text = "MB/s"
	p.Y.Min = 0
	p.Add(plotter.NewGrid())
	for i, s := range []struct {
		name   string
		series []float64
	}{{"down", f.Series}, {"up", f.SeriesUp}} {
		if len(s.series) < 2 {
			continue
		}
		xys := make(plotter.XYs, len(s.series))
		for i, y := range s.series {
			xys[i] = plotter.XY{X: float64(i) / 10, Y: y}
		}
		l, err := plotter.NewLine(xys)
		if err != nil {
			return err
		}
		l.Color = colours[i]
		l.Width = vg.Points(1.5)
		p.Add(l)
		p.Legend.Add(s.name, l)
	}
	p.Legend.Top = true
	p.Y.Max *= 1.2 // room for the legend
	return p.Save(9*vg.Inch, 3*vg.Inch, name)
}
