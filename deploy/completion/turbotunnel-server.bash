# Completion of turbotunnel-server for bash.
_turbotunnel_server() {
	local current=${COMP_WORDS[COMP_CWORD]} words
	COMPREPLY=()
	case ${COMP_WORDS[COMP_CWORD - 1]} in
	-tls-cert | -tls-key | -state-dir | -decoy | -log) compopt -o default; return ;;
	-acme-hostnames | -acme-email | -acme-directory | -url | -trusted-proxies | -memory-limit | -metrics | -drain) return ;;
	*) words="-acme-directory -acme-email -acme-hostnames -decoy -disable-tls -drain -h -log -memory-limit -metrics -proxy-protocol -state-dir -tls-cert -tls-key -trusted-proxies -unsafe-logging -url -version" ;;
	esac
	COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _turbotunnel_server turbotunnel-server
