"""The log formats that a regular expression describes: a table. A new one is one more entry of FORMATS.

`parse.py` has the two formats of JSON, `ndjson` and `docker`.

A layout is a time format and a regular expression that must match the whole line (without trailing blanks). Its
groups `timestamp`, `level`, `service`, `host` and `message` fill the columns of that name; every other group
becomes a field of `metadata` under its own name ('-' and '' count as absent). Layouts are tried in order. Before a
line is matched, it loses its colours (ANSI escape codes), a byte order mark, and NUL characters in front.

A line that is no record of its own may belong to the one before it: a stack trace, a message of several lines. Where
`head` is given, every line without it does; elsewhere only what looks like part of a TRACE. Container runtimes split
long lines; where `part` is given, the parts of a record are put together again.

A time format is one of strptime's, or ISO ("iso") or "%s": both are every time that `core.instants` reads. Its "%f" may
be absent from a line and takes up to nine digits. Without a year in it, the year is inferred; without a zone,
--timezone says which.
"""

from collections.abc import Callable
from dataclasses import dataclass

from services.send.levels import severity_level, status_level

NUMBERS = frozenset({"pid", "tid", "status", "bytes", "line", "pri", "port"})
"""Groups that become JSON numbers when they hold digits only."""

TRACE = (
    r"\s|at |\.\.\. |Caused by: |Suppressed: |Traceback \(|During handling of |The above exception |"
    r"[\w.$]*(?:Error|Exception)\b"
)
"""How a line of a stack trace begins."""

ISO = "iso"


@dataclass(frozen=True, slots=True)
class Layout:
    """`vague`: lines of many other formats look like it; see `Format.proof`."""

    time: str
    pattern: str
    vague: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """`samples`: lines that must parse. `service`: for lines that name none ('' = the file's name).

    `head`: what every record begins with, where a line without it is surely none.
    `part`: a record, or a part of one. Its groups: `stream`, `message`, and `more` where the record goes on in the next
    line of that stream.
    `proof`: groups of which a line has one when it surely has this format. Detection takes half of a file's lines
    without them only if they name a service and share their host with another line.
    `level_from`: a group, and the function that makes a level of it where the line itself has none.
    """

    name: str
    about: str
    layouts: tuple[Layout, ...]
    samples: tuple[str, ...] = ()
    service: str = ""
    head: str = ""
    part: str = ""
    proof: tuple[str, ...] = ()
    level_from: tuple[str, Callable[[str], str]] | None = None


_ISO = r"(?P<timestamp>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:[Zz]| ?[+-]\d\d:?\d\d|[+-]\d\d)?)"
_DATE_CLOCK = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:"
_QUOTED = r'(?:[^"\\]++|\\.)*+'
_UNESCAPED = rf'{_QUOTED}(?:"{_QUOTED}){{0,8}}?'  # a few quotes that should have been escaped, as few as will do
_LEVEL = (
    r"(?P<level>TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|FATAL|CRITICAL|SEVERE|AUDIT|CONFIG|FINE(?:R|ST)?|VERBOSE)"
)
_ANY_CASE = (  # "[info]:", "[error]", "warn:", and in capitals with neither
    r"(?=\[|[A-Z]+\b|\w+:)\[?(?P<level>(?i:SILLY|HTTP|ERR|CRIT|ALERT|EMERG|PANIC|INFORMATION|"
    + _LEVEL.removeprefix("(?P<level>").removesuffix(")")
    + r"))\]?:? +"
)
_THREAD = r"\[(?P<thread>(?:[^\[\]]++|\[[^\[\]]*+\])*+)\]"  # one level of brackets within: [QuorumPeer[myid=1]/2181]
_LOGGER = (
    r"(?P<service>[^\s:]+)(?: \((?P<source>[^\s()]+(?:\(\d*\))?)\))?(?: +-| *:)(?: |$)"  # "a.B:", "a.B (B.java:7) -"
)
_MESSAGE = r"(?P<message>.*)"

_CLIENT = (  # with a port or not: "a.example:51", "::1:53512" (no group of an address has five digits), "2001:db8::17"
    r"[^\s\[\]:]+|(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}(?=:\d+\])|[0-9a-fA-F:.]+?(?=:\d{5}\]|\])|[^\s\[\]]+?"
)
_IP = r"\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F.]*+:[0-9a-fA-F.]*+:[0-9a-fA-F:.]*+"
_VHOST = rf"(?P<vhost>[\w.-]+(?::\d{{1,5}}(?= \S*[.:])|(?= (?:{_IP}) ))) "
_ACCESS = (
    r"(?P<host>\S+) (?P<ident>\S+) (?P<user>.+?) \[(?P<timestamp>[^\[\]]+)\] "
    rf'"(?P<message>{_UNESCAPED})" (?P<status>\d{{3}}) (?P<bytes>\d+|-)'
)
_AGENT = rf'{_ACCESS} "(?P<referer>{_UNESCAPED})" "(?P<agent>{_UNESCAPED})"'
_EXTRA = rf'(?: (?P<extra>(?:"{_QUOTED}"|[^\s"]++)(?: (?:"{_QUOTED}"|[^\s"]++))*+))?'
_ACCESS_TIME = "%d/%b/%Y:%H:%M:%S %z"

_TAG = (  # "sshd[42]: ", "su(pam_unix): ", "launchd[1] (com.apple.x): ", "Microsoft Word[7]: "; or none at all
    r"(?:(?P<service>[^\s:\[\]]+(?: [^\s:\[\]]+){0,2})(?:\[(?P<pid>[^\s\]]*)\])?(?: \((?P<unit>[^()]*)\))?:(?: |$))?"
)
_COUNT = r"(?:\d{1,6} (?=<))?"  # the length of the message in front of it, by RFC 6587
_PRI = rf"(?:{_COUNT}<(?P<pri>\d{{1,3}})>)?"
_HOST = r"(?P<host>(?!\[\w+\]:?(?: |$))\S*[^\s:])"  # neither "[info]" nor "kernel:"
_OWN_TAG = r"(?P<service>[^\s:\[\]]++)(?:\[(?P<pid>[^\s\]]*)\])?:(?: (?!%)|$)"  # before "%" is Cisco's host
_MONTH_DAY = r"[A-Z][a-z]{2} +\d{1,2}"
_CLOCK = r"\d\d:\d\d:\d\d(?:\.\d{1,9})?"

FORMATS = {
    f.name: f
    for f in (
        Format(
            "combined",
            "Apache and nginx access logs with referer and agent",
            (
                Layout(_ACCESS_TIME, rf"{_VHOST}{_AGENT}{_EXTRA}"),
                Layout(_ACCESS_TIME, rf"{_AGENT}{_EXTRA}"),
                Layout(_ACCESS_TIME, rf"{_AGENT}(?: (?P<extra>.+))?"),
            ),
            (
                'a.example:443 10.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "GET / HTTP/1.1" 200 5 "-" "my " agent" 7 "b"',
                '127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /a.gif HTTP/1.0" 200 26 "http://a.b/" "Mozilla"',
                '::1 - - [10/Oct/2000:13:55:36 +0000] "POST /\\"x\\"" 503 - "-" "curl \\"8\\"" 0.002 "10.0.0.9"',
            ),
            service="http",
            level_from=("status", status_level),
        ),
        Format(
            "common",
            "Apache access logs, Common Log Format",
            (Layout(_ACCESS_TIME, rf"{_VHOST}{_ACCESS}"), Layout(_ACCESS_TIME, _ACCESS)),
            (
                '10.0.0.1 - - [10/Oct/2000:13:55:36 -0700] "GET /missing HTTP/1.0" 404 12',
                'a.example 2001:db8::17 - - [10/Oct/2000:13:55:36 +0000] "GET / HTTP/1.1" 200 5',
            ),
            service="http",
            level_from=("status", status_level),
        ),
        Format(
            "apache-error",
            "Apache error logs, 2.0 to 2.4; `host` is the client, which also stays in the message",
            (
                Layout(
                    "%a %b %d %H:%M:%S.%f %Y",
                    r"\[(?P<timestamp>[^\]]+)\] \[(?:(?P<module>[^\]:]*):)?(?P<level>[^\]:]+)\]"
                    r" \[pid (?P<pid>\d+)(?::tid (?P<tid>\d+))?\] "
                    rf"(?=(?:.*?\[client (?P<host>{_CLIENT})(?::(?P<port>\d+))?\])?){_MESSAGE}",
                ),
                Layout(
                    "%a %b %d %H:%M:%S.%f %Y",
                    r"\[(?P<timestamp>[^\]]+)\] \[(?P<level>[^\]:]+)\] "
                    rf"(?=(?:\[client (?P<host>[^\]]+)\])?){_MESSAGE}",
                ),
            ),
            (
                "[Sun Dec 04 04:47:44 2005] [notice] workerEnv.init() ok",
                "[Sun Dec 04 05:15:09 2005] [error] [client 10.1.2.3] Directory index forbidden by rule: /var/www/",
                "[Fri Sep 09 10:42:29.902022 2011] [core:error] [pid 7:tid 43] (2)No file: [client 10.1.9.7:51] AH35",
            ),
            service="apache",
        ),
        Format(
            "nginx-error",
            "nginx error logs",
            (
                Layout(
                    "%Y/%m/%d %H:%M:%S",
                    r"(?P<timestamp>\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) \[(?P<level>\w+)\] (?P<pid>\d+)#(?P<tid>\d+): "
                    rf"(?=(?:.*?, client: (?P<host>[^\s,]+))?){_MESSAGE}",
                ),
            ),
            ("2023/01/02 03:04:05 [error] 12#7: *9 open() failed (2: No such file), client: 10.0.0.9, server: _",),
            service="nginx",
        ),
        Format(
            "openstack",
            "oslo.log of OpenStack, the file's name in front or not",
            (
                Layout(
                    ISO,
                    rf"(?:(?P<file>\S+) )?{_ISO} (?P<pid>\d+) {_LEVEL} (?P<service>\S+) "
                    rf"(?:\[(?P<context>-|(?:None )?req-[^\]]*)\] ?)?{_MESSAGE}",
                ),
            ),
            (
                "nova-api.log 2017-05-16 00:00:00.008 25746 INFO nova.wsgi [req-1 u t - - -] 10.1.1.1 status: 200",
                "2017-05-16 00:00:01.551 2931 WARNING nova.compute.manager [-] [instance: 7] VM Stopped",
                "2017-05-16 00:00:01.551 2931 ERROR nova.compute.manager no context",
            ),
            head=rf"(?:\S+ )?{_DATE_CLOCK}",
        ),
        Format(
            "log4j",
            "log4j, logback and kin in their usual layouts (Hadoop, Spark, ZooKeeper, Kafka, Spring, Tomcat, ...)",
            (
                Layout(
                    ISO,  # ZooKeeper
                    rf"{_ISO} (?:\[myid:(?P<myid>[^\]]*)\] )?- {_LEVEL} +"
                    rf"\[(?P<thread>.*?):(?P<service>[^\s:@\[\]]+)@(?P<line>\d+)\] - ?{_MESSAGE}",
                ),
                Layout(ISO, rf"{_ISO} - (?P<service>\S+) - {_LEVEL} - ?{_MESSAGE}"),  # Python's logging
                Layout(
                    ISO,
                    rf"{_ISO} +{_LEVEL} +(?P<pid>\d+) --- (?:\[(?P<app>[^\]]*)\] (?=\[))?"  # Spring Boot
                    rf"{_THREAD} +{_LOGGER}{_MESSAGE}",
                ),
                Layout(ISO, rf"{_ISO} +{_LEVEL} +(?:{_THREAD} +)?{_LOGGER}{_MESSAGE}"),
                Layout(ISO, rf"{_ISO} +{_THREAD} +{_LEVEL} +{_LOGGER}{_MESSAGE}"),
                Layout(
                    "%y/%m/%d %H:%M:%S", rf"(?P<timestamp>\d\d/\d\d/\d\d \d\d:\d\d:\d\d) {_LEVEL} +{_LOGGER}{_MESSAGE}"
                ),
                Layout("%y%m%d %H%M%S", rf"(?P<timestamp>\d{{6}} \d{{6}}) (?P<pid>\d+) {_LEVEL} +{_LOGGER}{_MESSAGE}"),
                Layout(ISO, rf"\[{_ISO}\] {_LEVEL} ++(?:{_MESSAGE} |(?<=  ))\((?P<service>[\w.$-]+)\)"),  # Kafka
                Layout(
                    "%d-%b-%Y %H:%M:%S.%f",  # Tomcat
                    r"(?P<timestamp>\d\d-[A-Z][a-z]{2}-\d{4} \d\d:\d\d:\d\d\.\d{3}) "
                    rf"{_LEVEL} +{_THREAD} +(?P<service>\S+) {_MESSAGE}",
                ),
                Layout(ISO, rf"{_LEVEL} +{_THREAD} +{_ISO} (?P<service>\S+?):(?P<line>\d+) - {_MESSAGE}"),  # Cassandra
                Layout(ISO, rf"\[?{_ISO}\]?[ ,]+{_ANY_CASE}{_MESSAGE}"),
            ),
            (
                "2015-10-18 18:01:47,978 INFO [main] org.apache.hadoop.v2.app.MRAppMaster: Created MRAppMaster",
                "2015-07-29 17:41:44,747 - INFO  [QuorumPeer[myid=1]/0:0:0:0:2181:FastLeaderElection@774] - timed out",
                "2015-10-18 18:01:47,978 - app.module - WARNING - careful",
                "2023-01-01 12:00:00.000  INFO 12345 --- [       main] o.a.c.c.C.[Tomcat].[localhost].[/] : started",
                "2015-10-18T18:01:47.978+02:00 [pool-1-thread-2] ERROR com.example.Foo - failed",
                "2015-10-18 18:01:47,978 INFO  [main] namenode.FSName (FSName.java:log(123)) - allowed",
                "17/06/09 20:10:40 INFO executor.CoarseGrainedExecutorBackend: Registered handlers for [TERM, INT]",
                "081109 203615 148 INFO dfs.DataNode$PacketResponder: PacketResponder 1 for block blk_3 terminating",
                "[2015-10-18 18:01:47,978] INFO [KafkaServer id=0] started (kafka.server.KafkaServer)",
                "18-Oct-2015 18:01:47.978 SEVERE [main] org.apache.catalina.core.StandardService.start Starting",
                "INFO  [main] 2015-10-18 18:01:47,978 CassandraDaemon.java:454 - Hostname: a",
                "2015-10-18 18:01:47,978 [WARN] no logger named",
                "2015-10-18T18:01:47.978Z [info]: winston",
            ),
            head=(  # a date alone may stand in a message
                rf"\[?{_DATE_CLOCK}|\d\d/\d\d/\d\d \d\d:\d\d:|\d{{6}} \d{{6}} |\d\d-[A-Z][a-z]{{2}}-\d{{4}} \d\d:\d\d:|"
                rf"{_LEVEL} +\[.*\] +{_DATE_CLOCK}"
            ),
        ),
        Format(
            "syslog",
            "RFC 5424, and RFC 3164 with or without <PRI>, with classic or ISO times",
            (
                Layout(
                    ISO,  # RFC 5424; some writers leave the structured data out
                    rf"{_COUNT}<(?P<pri>\d{{1,3}})>\d{{1,2}} (?P<timestamp>\S+) (?P<host>\S+) (?P<service>\S+)"
                    r" (?P<pid>\S+) (?P<message_id>\S+)"
                    r'(?: (?P<structured_data>-|(?:\[(?:[^\]"\\]++|\\.|"(?:[^"\\]++|\\.)*+")*+\])+)(?= |$))?'
                    rf"(?: \ufeff?{_MESSAGE})?",
                ),
                Layout("%b %d %H:%M:%S.%f", rf"{_PRI}(?P<timestamp>{_MONTH_DAY} {_CLOCK}) {_HOST} +{_TAG}{_MESSAGE}"),
                Layout(  # as programs write it to /dev/log, without a host
                    "%b %d %H:%M:%S.%f", rf"{_PRI}(?P<timestamp>{_MONTH_DAY} {_CLOCK}) {_OWN_TAG}{_MESSAGE}"
                ),
                Layout(ISO, rf"{_PRI}{_ISO.replace('[ T]', 'T')} {_HOST} +{_TAG}{_MESSAGE}", vague=True),
                Layout(
                    "%b %d %Y %H:%M:%S.%f",
                    rf"{_PRI}(?P<timestamp>{_MONTH_DAY} \d{{4}} {_CLOCK}) {_HOST}(?: ?:)? {_TAG}{_MESSAGE}",
                ),
            ),
            (
                "Dec 10 06:55:46 LabSZ sshd[24200]: Invalid user webmaster from 173.234.31.186",
                "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
                "Jul  1 09:00:55 calvisitor-10 com.apple.xpc.launchd[1] (com.apple.x[9]): Service only ran.",
                "Jun 14 15:16:01 combo sshd(pam_unix)[19939]: authentication failure; logname= uid=0",
                "Jul 27 14:41:57 combo syslogd 1.4.1: restart.",
                "2024-05-01T12:00:00.123456+02:00 host systemd[1]: Started session-4.scope",
                '<165>1 2003-10-11T22:14:15.003Z host.example evntslog - ID47 [x@1 iut="3\\]" y="a"][z@2] An event',
                "<34>1 2003-10-11T22:14:15.003Z mymachine su 77 ID47 -",
                "<189>Oct  1 2023 12:00:00 fw01 : %ASA-5-111008: User executed a command",
                "<30>May  1 12:00:00 chronyd[1119]: System clock was stepped by 0.7 seconds",
                "67 <139>1 2024-05-01T12:00:01+00:00 node-1 web 34 - - template missing",
                "<40>1 2024-05-01T12:00:00+00:00 host app web.3 - Dyno web.3 is up",
            ),
            proof=("pri", "pid"),
            service="syslog",
            level_from=("pri", severity_level),
        ),
        Format(
            "cri",
            "containers' logs as containerd and CRI-O write them (Kubernetes' /var/log/pods)",
            (Layout(ISO, rf"{_ISO} (?P<stream>stdout|stderr) [FP](?::\S*)? {_MESSAGE}"),),
            (
                "2024-05-01T12:00:00.123456789Z stdout F server listening on :8080",
                "2024-05-01T12:00:02.5+02:00 stderr P the first half of a long line, ",
            ),
            part=r"\S+ (?P<stream>stdout|stderr) (?:F|(?P<more>P))(?::\S*)? (?P<message>.*)",
        ),
        Format(
            "logcat",
            "Android, `logcat -v threadtime`",
            tuple(
                Layout(
                    time,
                    rf"(?P<timestamp>{date} \d\d:\d\d:\d\d\.\d{{3,6}}) +(?P<pid>\d+) +(?P<tid>\d+) (?P<level>[VDIWEFS])"
                    rf" (?P<service>.{{0,128}}?) *+:(?: |$){_MESSAGE}",
                )
                for time, date in (("%m-%d %H:%M:%S.%f", r"\d\d-\d\d"), ("%Y-%m-%d %H:%M:%S.%f", r"\d{4}-\d\d-\d\d"))
            ),
            ("03-17 16:13:38.811  1702  2395 D WindowManager: printFreezingDisplayLogs opening app",),
            service="android",
        ),
        Format(
            "klog",
            "glog and Kubernetes' klog",
            tuple(
                Layout(
                    time,
                    rf"(?P<level>[IWEF])(?P<timestamp>{date} \d\d:\d\d:\d\d\.\d{{1,9}}) +(?P<tid>\d+) "
                    rf"(?P<source>[^\s\]]+)\] ?{_MESSAGE}",
                )
                for time, date in (("%m%d %H:%M:%S.%f", r"\d{4}"), ("%Y%m%d %H:%M:%S.%f", r"\d{8}"))
            ),
            ('E0312 23:59:59.123456   1 reflector.go:138] "Failed to watch" err="timeout"',),
            head=r"[IWEF]\d{4}(?:\d{4})? \d\d:",
        ),
        Format(
            "cbs",
            "Windows component servicing (CBS.log)",
            (
                Layout(
                    "%Y-%m-%d %H:%M:%S",
                    r"(?P<timestamp>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d), (?P<level>Info|Warning|Error|Perf) +"
                    rf"(?P<service>\S+) +{_MESSAGE}",
                ),
            ),
            ("2016-09-28 04:30:30, Info                  CBS    Loaded Servicing Stack v6.1.7601.23505",),
        ),
    )
}
