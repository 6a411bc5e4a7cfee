package tornet

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	controlPortFile = "control_port"
	debugLog        = "debug.log"
	extORCookieFile = "extended_orport_auth_cookie"
)

// commonLines are the torrc lines of every node. Sockets are on loopback only,
// and tor believes that its own address is public.
func commonLines(dir string) []string {
	return []string{
		"DataDirectory " + dir,
		"Log notice stdout",
		"TestingTorNetwork 1",
		"AssumeReachable 1",
		"PathsNeededToBuildCircuits 0.67",
		"Address 127.0.0.1",
		"OutboundBindAddress 127.0.0.1",
		"ShutdownWaitLength 0",
		"SafeLogging 0",
		"LogTimeGranularity 1",
		"ProtocolWarnings 1",
		// The default, KIST, asks the kernel about sockets, and holds cells
		// back for milliseconds that add up on loopback.
		"Schedulers Vanilla",
	}
}

func authorityLines(dir string, nd *node) []string {
	return []string{
		"Nickname " + nd.name,
		"ContactInfo " + nd.name + "@test.invalid",
		"SocksPort 0",
		fmt.Sprintf("ORPort 127.0.0.1:%d", nd.orPort),
		fmt.Sprintf("DirPort 127.0.0.1:%d", nd.dirPort),
		"AuthoritativeDirectory 1",
		"V3AuthoritativeDirectory 1",
		fmt.Sprintf("TestingV3AuthInitialVotingInterval %d", int(votingInterval.Seconds())),
		"TestingV3AuthInitialVoteDelay 2",
		"TestingV3AuthInitialDistDelay 2",
		"V3AuthVotingInterval 10",
		"V3AuthVoteDelay 2",
		"V3AuthDistDelay 2",
		"V3AuthNIntervalsValid 2",
		"TestingDirAuthVoteExit *",
		"TestingDirAuthVoteGuard *",
		"TestingDirAuthVoteHSDir *",
		"TestingMinExitFlagThreshold 0",
		"ExitRelay 1",
		"ExitPolicy accept *:*",
		// An exit without a name server is none. This one never answers, and
		// is never asked: targets are named by address.
		"ServerDNSResolvConfFile " + filepath.Join(dir, resolvFile),
		"ServerDNSDetectHijacking 0",
		"ServerDNSTestAddresses",
	}
}

func bridgeLines(opts Options, nd *node, geoip geoipFiles, addr string) []string {
	lines := []string{
		"Nickname " + nd.name,
		"SocksPort 0",
		fmt.Sprintf("ORPort 127.0.0.1:%d", nd.orPort),
		"ExtORPort auto",
		"ExtORPortCookieAuthFile " + filepath.Join(nd.dir, extORCookieFile),
		"BridgeRelay 1",
		"BridgeDistribution none",
		"PublishServerDescriptor 0",
		"ExitPolicy reject *:*",
		"GeoIPFile " + geoip.v4,
		"GeoIPv6File " + geoip.v6,
	}
	lines = append(lines, controlLines(nd)...)
	if opts.LogUserAddr {
		lines = append(lines, "Log [general,net]debug file "+filepath.Join(nd.dir, debugLog))
	}
	if opts.Transport != "" {
		lines = append(lines,
			fmt.Sprintf("ServerTransportPlugin %s exec %s", opts.Transport, opts.ServerExec),
			fmt.Sprintf("ServerTransportListenAddr %s %s", opts.Transport, addr))
	}
	return lines
}

// controlLines give a node a control port of tor's choice, behind a cookie:
// others on the machine have no business there.
func controlLines(nd *node) []string {
	return []string{
		"ControlPort 127.0.0.1:auto",
		"ControlPortWriteToFile " + filepath.Join(nd.dir, controlPortFile),
		"CookieAuthentication 1",
		"CookieAuthFile " + filepath.Join(nd.dir, "control_auth_cookie"),
	}
}

func clientLines(nd *node, c ClientOptions, addr, id, args string) []string {
	lines := []string{
		"SocksPort 127.0.0.1:auto",
		"UseBridges 1",
	}
	lines = append(lines, controlLines(nd)...)
	lines = append(lines, c.Torrc...)
	bridge := []string{"Bridge"}
	if c.Transport != "" {
		lines = append(lines, fmt.Sprintf("ClientTransportPlugin %s exec %s", c.Transport, c.Exec))
		bridge = append(bridge, c.Transport)
	}
	if c.Line != "" {
		return append(lines, c.Line)
	}
	bridge = append(bridge, addr, id)
	if args != "" {
		bridge = append(bridge, args)
	}
	return append(lines, strings.Join(bridge, " "))
}

const resolvFile = "resolv.conf"

type geoipFiles struct{ v4, v6 string }

// writeGeoIP writes what the nodes read from the network's folder: the tables
// of countries, in the format of tor's own (first and last address of a range,
// as numbers for IPv4, sorted), and the exits' name server.
func writeGeoIP(dir string, countries map[netip.Prefix]string) (geoipFiles, error) {
	files := geoipFiles{v4: filepath.Join(dir, "geoip"), v6: filepath.Join(dir, "geoip6")}
	var v4, v6 strings.Builder
	for _, prefix := range slices.SortedFunc(maps.Keys(countries), netip.Prefix.Compare) {
		first, last := prefix.Masked().Addr(), lastAddr(prefix)
		if first.Is4() {
			fmt.Fprintf(&v4, "%d,%d,%s\n", number(first), number(last), countries[prefix])
		} else {
			fmt.Fprintf(&v6, "%s,%s,%s\n", first, last, countries[prefix])
		}
	}
	for name, text := range map[string]string{
		files.v4:                       v4.String(),
		files.v6:                       v6.String(),
		filepath.Join(dir, resolvFile): "nameserver 127.0.0.1\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return files, err
		}
	}
	return files, nil
}

func lastAddr(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Masked().Addr().AsSlice()
	for bit := prefix.Bits(); bit < 8*len(bytes); bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

func number(addr netip.Addr) uint32 {
	b := addr.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}
