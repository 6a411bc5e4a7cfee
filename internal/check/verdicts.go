package check

// firstCaveat is the exit code from which on verdicts say that the tunnel works,
// but not as it should.
const firstCaveat = 30

// The verdicts on a way to a server. Their exit codes stand in the manual page. Those
// that take name and exit code from another one are it in other words, for ways where
// what that one says would mislead.
var (
	works = Verdict{"works", 0, "It works.", ""}

	noDNS = Verdict{
		"no-dns", 10, "DNS has no address for the front, or does not answer.",
		"See whether other sites open. If they do, the name is misspelt, or your network's DNS hides it: ask another DNS server by doh= in the line, or put the front's address there by addr=.",
	}
	noDoH = Verdict{
		noDNS.Name, noDNS.Exit, "The resolver of doh= has no address for the front, or does not answer.",
		"See whether the front's name is spelt right. If it is, the resolver is blocked here, or down: name another one by doh=, or put the front's address there by addr=.",
	}
	dnsLies = Verdict{
		"dns-lies", 11, "DNS lies: the address that it says for the front is not the front's.",
		"Ask another DNS server by an encrypted connection, doh= in the line, or put the front's address there by addr=.",
	}
	dohLies = Verdict{
		dnsLies.Name, dnsLies.Exit, "The address that the resolver of doh= says for the front is not the front's, or leads to somebody else here.",
		"Name another resolver by doh=, or put the front's address there by addr=.",
	}
	blocked = Verdict{
		"blocked", 12, "The front's address cannot be reached: it is blocked here, or nobody is there, or this machine has no network.",
		"See whether other sites open. If they do, use another front, or another address of this one by addr=.",
	}
	unreachable = Verdict{
		blocked.Name, blocked.Exit, "The server's address cannot be reached: the server is down, or it is blocked here, or this machine has no network.",
		"See whether other sites open. If they do, wait and check again; if it lasts, tell who runs the bridge, or ask for another one.",
	}
	blockedBeyondProxy = Verdict{
		blocked.Name, blocked.Exit, "The proxy is there, and says that it cannot reach the front: it is blocked there, or nobody is there, or its name is misspelt.",
		"See whether other sites open by the proxy. If they do, use another front, or another address of this one by addr=.",
	}
	proxyFails = Verdict{
		"proxy", 13, "The proxy cannot be reached, or refuses.",
		"See whether the proxy's address, name and password are right, and whether it lets you through to port 443.",
	}
	sniBlocked = Verdict{
		"sni-blocked", 14, "The front's name is blocked: the address answers when another name is named in TLS, and not when this one is.",
		"Use another front of the same CDN, front= or fronts= in the line; or, if the front has a key for it, encrypt the name by ech=dns.",
	}
	helloBlocked = Verdict{
		"hello-blocked", 15, "The look of the TLS handshake is blocked: with another one the same front answers.",
		"Name the look that was answered in the line, by utls=.",
	}
	tlsFails = Verdict{
		"tls", 16, "No TLS handshake succeeds with the front, by whatever name or look: something on the way breaks it, or the front is no HTTPS server.",
		"Use another front, or another network.",
	}
	intercepted = Verdict{
		"intercepted", 17, "Somebody in between answers in the front's place, with a certificate that nobody vouches for: a box that reads along, or a program on this machine that does.",
		"Do not go on over this network with anything that matters. Use another one, or turn the program off.",
	}
	portal = Verdict{
		"captive-portal", 18, "A captive portal: the network answers by a page of its own, for its terms or a login.",
		"Open any web page in a browser, do what the portal wants, and check again.",
	}
	frontingRefused = Verdict{
		"fronting-refused", 19, "The CDN refuses domain fronting: it does not serve this host by that front.",
		"Use a front that the same CDN lets you use, or none.",
	}
	silence = Verdict{
		"silence", 20, "The front is reached, and requests to it are not answered, or are cut.",
		"Try another front. If a browser cannot open the front's site either, the front is down or the path throttles it.",
	}
	wrongKey = Verdict{
		"wrong-key", 21, "Something answers that is not the server with this key: the key or the URL's path is wrong, or the server is not behind that URL any more.",
		"Compare the line with the one that you were given, letter by letter. Else ask who runs the bridge for a new one.",
	}
	serverDown = Verdict{
		"server-down", 22, "The CDN or proxy is there, and says that the server behind it is not.",
		"Wait, and check again. If it lasts, tell who runs the bridge.",
	}
	refused = Verdict{
		"refused", 23, "The server answers under its key, and refuses: it speaks another version, or lacks the engine.",
		"Update the older of the two programs, or leave out engine= in the line.",
	}
	bodiesRefused = Verdict{
		"body-limit-fatal", 24, "The path refuses even small requests for their size.",
		"Use another front.",
	}
	clockOffTLS = Verdict{
		"clock", 25, "The front's certificate is not valid at the time that the clock of this machine shows: the clock is wrong, or the front's certificate has run out.",
		"Set the clock and the time zone, and check again.",
	}
	stalls = Verdict{
		"stalls", 26, "The server answers under its key, and then little or nothing comes through any more.",
		"Check again. If it lasts, try another front, or mode=poll in the line.",
	}
	echFails = Verdict{
		"ech", 27, "The front cannot be reached by a name that is encrypted (ech=): it does not take the key, or such handshakes are blocked here.",
		"Use another front, or ask who gave you the line for a newer one. If whoever watches this network may see the front's name, leave ech= out of the line.",
	}

	clockOff = Verdict{
		"clock-off", 30, "It works, but the clock of this machine is wrong.",
		"Set the clock and the time zone. The tunnel does without; tor does not.",
	}
	bodyLimit = Verdict{
		"body-limit", 31, "It works, but the path refuses large requests or answers, so that transfers take more of them than they need.",
		"Nothing has to be done. If you run the server: raise the limit (client_max_body_size of nginx, the CDN's setting).",
	}
	heldBack = Verdict{
		"held-back", 32, "It works, but the path holds answers or uploads back until they are complete, so that it takes more requests and is slower than it could be.",
		"Nothing has to be done. If you run the server: have the proxy or the CDN pass on what comes while it comes (proxy_buffering off and proxy_request_buffering off of nginx).",
	}
)

// ofDoH is the verdict v in the words that fit where doh= is given: the remedy of those
// on DNS is doh=.
func ofDoH(v *Verdict) *Verdict {
	switch v {
	case &noDNS:
		return &noDoH
	case &dnsLies:
		return &dohLies
	}
	return v
}

// Verdicts are all of them, for the manual page and its test.
func Verdicts() []Verdict {
	return []Verdict{
		works, noDNS, dnsLies, blocked, proxyFails, sniBlocked, helloBlocked, tlsFails, intercepted, portal,
		frontingRefused, silence, wrongKey, serverDown, refused, bodiesRefused, clockOffTLS, stalls, echFails, clockOff, bodyLimit, heldBack,
	}
}
