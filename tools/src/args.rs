//! What was typed: the whole command line on one page. Nothing here acts or decides; `config` gives it meaning.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueHint};

use crate::human;
use crate::spec::{self, Label, PathSpec};

const AFTER_HELP: &str = "\
SPEC names a snapshot: a ref (`web`), an older entry of its history (`web~2` is
two before the newest), or at least six digits of a snapshot id.
`SPEC:path` names something inside its tree.

Exit codes: 0 done; 1 no, or not found; 2 error; 3 partly done (some files could
not be read, or not be restored as they were). Answers go to standard output,
everything for people to standard error.

Environment: TORPOR_STORE, TORPOR_CONFIG and TORPOR_DOMAIN stand for --store,
--config and --domain, TORPOR_LOG is a log filter such as `debug`.";

/// Content-addressed snapshots of file trees and memory: back up, mount, freeze, capture, resume.
#[derive(Debug, Parser)]
#[command(name = "snapctl", version, after_help = AFTER_HELP, propagate_version = false)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub global: GlobalArguments,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every verb takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct GlobalArguments {
    /// Directory of the store
    #[arg(long, global = true, value_name = "PATH", env = "TORPOR_STORE", value_hint = ValueHint::DirPath)]
    pub store: Option<PathBuf>,
    /// Configuration file [default: /etc/torpor/config.toml, then the user's torpor/config.toml]
    #[arg(long, global = true, value_name = "FILE", env = "TORPOR_CONFIG", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Domain to work in [default: the configuration's, then the plain one]
    #[arg(long, global = true, value_name = "NAME", env = "TORPOR_DOMAIN")]
    pub domain: Option<String>,
    /// Answer in JSON, one document a line
    #[arg(long, global = true)]
    pub json: bool,
    /// How long to wait for another process of this host that writes, collects or moves packs; 0: not at all
    /// [default: 10, for `freeze` what the mount was told]
    #[arg(long, global = true, value_name = "SECONDS")]
    pub wait: Option<u32>,
    /// Say nothing but what was asked for, and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Say more; twice for debugging
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a new, empty store
    Init,
    /// Store a directory as a new snapshot of a ref
    Backup(BackupArguments),
    /// Write a snapshot's files, or some of them, or its memory, to a directory
    ///
    /// What the target refuses of a path (an owner, an attribute, a file too large for it) is told and costs no other path;
    /// then the exit code is 3. Only a full target and what the store cannot give end a restore. Whether it ended early or
    /// was refused something, the same restore to the same target goes on: files that are there with all their bytes and
    /// attributes stay, everything else that the snapshot has is made again, and names that it has not are told and left.
    Restore(RestoreArguments),
    /// List snapshots, newest last
    Snapshots(SnapshotsArguments),
    /// Describe one snapshot
    Show(ShowArguments),
    /// List what is in a snapshot's tree
    Ls(LsArguments),
    /// Write a file of a snapshot to standard output
    Cat(CatArguments),
    /// Say what differs between two snapshots; exit 1 if anything does
    Diff(DiffArguments),
    /// Mount a snapshot, writable by default
    Mount(MountArguments),
    /// Unmount what `mount` mounted
    #[command(visible_alias = "unmount")]
    Umount(UmountArguments),
    /// Make a snapshot of what changed in a mount
    Freeze(FreezeArguments),
    /// Store a memory image: a CRIU dump, a Firecracker snapshot, or plain memory
    Capture(CaptureArguments),
    /// Wake a memory image, serving its pages on demand
    Resume(ResumeArguments),
    /// Drop snapshots from a ref's history
    Forget(ForgetArguments),
    /// Collect what no snapshot needs
    #[command(visible_alias = "prune")]
    Gc(GcArguments),
    /// Check that everything that is referred to is there, and whole
    #[command(visible_alias = "verify")]
    Check(CheckArguments),
    /// Verify every stored byte, list the files that damage affects, and repair it
    Scrub(ScrubArguments),
    /// Say what the store, or a ref, holds and what it costs
    Stats(StatsArguments),
    /// Work on the chunk index
    Index(IndexArguments),
    /// Say where packs lie, and move them between tiers
    Tier(TierArguments),
    /// Work on this host's cache of what lies on slower tiers
    Cache(CacheArguments),
    /// Create, list, rotate and destroy domains: tenants with keys of their own
    Domain(DomainArguments),
    /// Try what the tiers can be relied on for, and record it in the bucket
    ///
    /// The keys of a bucket need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on its objects and
    /// s3:ListBucket on the bucket, which may be limited to the prefix. A permission that lacks is named. The bucket is
    /// reached through the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names, unless NO_PROXY excepts it.
    Doctor(DoctorArguments),
    /// Print a completion script for a shell
    Completions(CompletionsArguments),
    /// Write the manual pages to a directory
    #[command(hide = true)]
    Man(ManArguments),
    /// Print version, format and features
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct BackupArguments {
    /// Directory to store
    #[arg(value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub source: PathBuf,
    /// Ref to move to the new snapshot; made if it is new
    #[arg(value_name = "REF")]
    pub name: String,
    /// Leave out what matches, as in .gitignore, relative to PATH; may be given again
    ///
    /// `*.tmp` or `cache`: this name at any depth. `logs/*.gz` or `/core`: anchored at PATH, because of the slash at the
    /// beginning or inside. `cache/`: directories only. `*`, `?`, `[a-z]` and `[!a-z]` match within a name and never a slash;
    /// `**` as a whole name stands for any number of names: `**/x`, `a/**/b`, `logs/**` (all that is in logs). A backslash takes
    /// the meaning from the character behind it. What is below a directory that is left out is left out. `!` for exceptions,
    /// `{a,b}` and `[[:alpha:]]` are refused.
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Do not enter other file systems
    #[arg(long)]
    pub one_file_system: bool,
    /// Read every file, also those that look unchanged: stores again what a scrub found to be lost
    #[arg(long)]
    pub force_read: bool,
    /// The same, and compare what is there already byte for byte: stores again whatever cannot be read
    #[arg(long)]
    pub compare: bool,
    /// Note on the snapshot; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    /// What to restore
    #[arg(value_name = "SPEC[:PATH]")]
    pub source: PathSpec,
    /// Where to: a new or empty directory, or the target of an earlier run of the same restore
    #[arg(value_name = "TARGET", value_hint = ValueHint::DirPath)]
    pub target: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotsArguments {
    /// Only this ref's
    #[arg(value_name = "REF")]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    #[arg(value_name = "SPEC")]
    pub spec: String,
}

#[derive(Debug, Args)]
pub(crate) struct LsArguments {
    /// Directory or file to list
    #[arg(value_name = "SPEC[:PATH]")]
    pub target: PathSpec,
    /// Mode, owner, size and time of each
    #[arg(long, short)]
    pub long: bool,
    /// Everything below, too
    #[arg(long, short = 'R')]
    pub recursive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CatArguments {
    /// File to write out
    #[arg(value_name = "SPEC:PATH")]
    pub target: PathSpec,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArguments {
    #[arg(value_name = "SPEC_A")]
    pub before: String,
    #[arg(value_name = "SPEC_B")]
    pub after: String,
    /// Only count
    #[arg(long)]
    pub stat: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MountArguments {
    #[arg(value_name = "SPEC")]
    pub spec: String,
    /// Directory to mount on
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,
    /// Where the mount keeps what is written [default: in the store's local state, one for each DIR]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub upper: Option<PathBuf>,
    /// Let other users in
    #[arg(long)]
    pub allow_other: bool,
    /// Serve from this process until unmounted
    #[arg(long)]
    pub foreground: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UmountArguments {
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
    /// Detach it even when its process is gone or it is in use
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FreezeArguments {
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
    /// Ref to move [default: the ref that was mounted]
    #[arg(value_name = "REF")]
    pub name: Option<String>,
    /// Note on the snapshot; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true))]
pub(crate) struct CaptureArguments {
    /// Ref to move to the new snapshot; made if it is new
    #[arg(value_name = "REF")]
    pub name: String,
    /// Directory that `criu dump` wrote. Of a process that was woken by `resume` and dumped before all its memory was there,
    /// the missing pages are taken from the image it was woken from; a copy of a dump must keep its times (cp -a)
    #[arg(long, value_name = "DIR", group = "source", value_hint = ValueHint::DirPath)]
    pub criu: Option<PathBuf>,
    /// Memory file of a Firecracker snapshot, of the type Full; see --full and --diff
    #[arg(long, value_name = "MEMORY", group = "source", requires = "vmstate", value_hint = ValueHint::FilePath)]
    pub firecracker: Option<PathBuf>,
    /// State file of that Firecracker snapshot
    #[arg(long, value_name = "FILE", requires = "firecracker", conflicts_with_all = ["raw", "criu"], value_hint = ValueHint::FilePath)]
    pub vmstate: Option<PathBuf>,
    /// Memory as one plain file
    #[arg(long, value_name = "FILE", group = "source", value_hint = ValueHint::FilePath)]
    pub raw: Option<PathBuf>,
    /// The memory file is of the type Full, and its holes are zero: needed for a sparse copy, after memory was unplugged,
    /// and where the file has another length than the parent's memory or most of it became zero
    #[arg(long, conflicts_with_all = ["criu", "diff"])]
    pub full: bool,
    /// The memory file is of the type Diff, and its holes are pages of --parent: the file as Firecracker wrote it, on ext4,
    /// XFS, btrfs or tmpfs
    #[arg(long, requires = "parent", conflicts_with = "criu")]
    pub diff: bool,
    /// Snapshot whose image to compare with [default: the ref's current one]. With --diff the snapshot that the machine was
    /// resumed from, or the one captured of it last: any other mixes the memory of two machines, which nothing can tell
    #[arg(long, value_name = "SPEC")]
    pub parent: Option<String>,
    /// Note on the snapshot; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true))]
pub(crate) struct ResumeArguments {
    #[arg(value_name = "SPEC")]
    pub spec: String,
    /// Directory to make for `criu restore --lazy-pages`, removed at the end; a plain `criu restore` refuses it, and
    /// `snapctl restore` makes one for that
    #[arg(long, value_name = "DIR", group = "target", value_hint = ValueHint::DirPath)]
    pub criu_dir: Option<PathBuf>,
    /// Run `criu restore --lazy-pages` too. The process is restored detached, and this command ends once all its memory is
    /// there: exit code 3 says that the process ended before
    #[arg(long, requires = "criu_dir")]
    pub restore: bool,
    /// CRIU's work directory, where lazy-pages.socket appears [default: --criu-dir]
    #[arg(long, value_name = "DIR", requires = "criu_dir", value_hint = ValueHint::DirPath)]
    pub work_dir: Option<PathBuf>,
    /// Socket to serve a Firecracker on (mem_backend of type Uffd)
    #[arg(long, value_name = "PATH", group = "target", requires = "vmstate", value_hint = ValueHint::FilePath)]
    pub uffd_socket: Option<PathBuf>,
    /// Where to write the state file that Firecracker loads; removed again if the resume fails
    #[arg(long, value_name = "FILE", requires = "uffd_socket", value_hint = ValueHint::FilePath)]
    pub vmstate: Option<PathBuf>,
    /// User and group that the socket and the state file belong to, as a jailer's Firecracker needs [default: the caller's]
    #[arg(long, value_name = "UID:GID", requires = "uffd_socket", value_parser = spec::owner)]
    pub socket_owner: Option<(u32, u32)>,
    /// Permission bits of the socket; to connect takes the permission to write
    #[arg(long, value_name = "OCTAL", default_value = "600", value_parser = spec::mode)]
    pub socket_mode: u32,
    /// Process that is to connect: when it ends before that, the resume ends at once
    #[arg(long, value_name = "PID", requires = "uffd_socket", value_parser = clap::value_parser!(i32).range(1..))]
    pub monitor_pid: Option<i32>,
    /// Serve only what is asked for, fetch nothing ahead
    #[arg(long)]
    pub no_prefetch: bool,
    /// How long to wait for CRIU or Firecracker to connect
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub accept_timeout: u32,
    /// More arguments for `criu restore`
    #[arg(last = true, value_name = "CRIU_ARGUMENTS", requires = "restore")]
    pub criu_arguments: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true))]
pub(crate) struct ForgetArguments {
    /// Ref whose history to shorten
    #[arg(value_name = "REF")]
    pub name: String,
    /// Snapshots to drop
    #[arg(value_name = "SNAPSHOT", group = "what", conflicts_with = "KeepArguments")]
    pub snapshots: Vec<String>,
    #[command(flatten)]
    pub keep: KeepArguments,
    /// Only say what would be dropped
    #[arg(long)]
    pub dry_run: bool,
}

/// Rules of retention; a snapshot stays when any rule keeps it.
#[derive(Debug, Args)]
pub(crate) struct KeepArguments {
    /// Keep the newest N
    #[arg(long, value_name = "N", group = "what", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_last: Option<u32>,
    /// Keep the newest of each of the last N hours that have one
    #[arg(long, value_name = "N", group = "what", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_hourly: Option<u32>,
    /// ... days
    #[arg(long, value_name = "N", group = "what", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_daily: Option<u32>,
    /// ... weeks
    #[arg(long, value_name = "N", group = "what", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_weekly: Option<u32>,
    /// ... months
    #[arg(long, value_name = "N", group = "what", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_monthly: Option<u32>,
    /// ... years
    #[arg(long, value_name = "N", group = "what", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_yearly: Option<u32>,
    /// Keep what is at most so much older than the newest that does not lie in the future: 12h, 30d, 1y6m (h, d, w,
    /// m = 30 days, y = 365 days)
    #[arg(long, value_name = "DURATION", group = "what", value_parser = human::parse_duration)]
    pub keep_within: Option<std::time::Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct GcArguments {
    /// Only say what the next cycle would do
    #[arg(long, conflicts_with = "cycles")]
    pub dry_run: bool,
    /// Cycles to run; what one cycle condemns, a later one deletes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub cycles: u32,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// Read and verify every byte, too
    #[arg(long)]
    pub read_data: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ScrubArguments {
    /// Only the N-th of M parts of all packs: M runs with N from 1 to M scrub everything once
    #[arg(long, value_name = "N/M", value_parser = spec::parse_subset)]
    pub subset: Option<store::scrub::Subset>,
    /// Read at most so many bytes a second: 500K, 20M, 1G
    #[arg(long, value_name = "BYTES", value_parser = human::parse_rate)]
    pub rate: Option<std::num::NonZeroU64>,
    /// Put damaged packs together again from what is whole anywhere, and note what is lost; deletes nothing
    #[arg(long)]
    pub repair: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatsArguments {
    /// Only what this snapshot or ref holds
    #[arg(value_name = "REF")]
    pub spec: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct IndexArguments {
    #[command(subcommand)]
    pub action: IndexAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IndexAction {
    /// Make the index again from the packs
    Rebuild,
}

#[derive(Debug, Args)]
pub(crate) struct TierArguments {
    #[command(subcommand)]
    pub action: TierAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TierAction {
    /// Show every tier, what it holds and its limit
    Status,
    /// Bring every tier below its limit and pinned snapshots to the hot tier; or one snapshot to a tier
    Move(TierMoveArguments),
    /// Compress better what came to a tier, at the level that the configuration gives it; runs beside all else
    Recompress(TierRecompressArguments),
    /// Keep a snapshot on the hot tier
    Pin(SpecArguments),
    /// Keep it there no longer
    Unpin(SpecArguments),
}

#[derive(Debug, Args)]
pub(crate) struct SpecArguments {
    #[arg(value_name = "SPEC")]
    pub spec: String,
}

#[derive(Debug, Args)]
pub(crate) struct TierMoveArguments {
    /// Snapshot to move; without it every tier is brought below its limit
    #[arg(value_name = "SPEC", requires = "to", conflicts_with = "every")]
    pub spec: Option<String>,
    /// Where to
    #[arg(long, value_name = "TIER", requires = "spec")]
    pub to: Option<TierName>,
    /// Move at most so many bytes a second: 500K, 20M, 1G
    #[arg(long, value_name = "BYTES", value_parser = human::parse_rate)]
    pub rate: Option<std::num::NonZeroU64>,
    /// Stay, and run again each so many seconds until told to stop
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub every: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct TierRecompressArguments {
    /// Leave alone what was read later than so long ago: 12h, 7d
    #[arg(long, value_name = "DURATION", value_parser = human::parse_duration)]
    pub unread: Option<std::time::Duration>,
    /// Read at most so many bytes a second: 500K, 20M, 1G
    #[arg(long, value_name = "BYTES", value_parser = human::parse_rate)]
    pub rate: Option<std::num::NonZeroU64>,
    /// Stay, and run again each so many seconds until told to stop
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub every: Option<u32>,
}

/// A data tier by its class.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum TierName {
    Hot,
    Warm,
    Cold,
}

impl From<TierName> for store::TierClass {
    fn from(name: TierName) -> Self {
        match name {
            TierName::Hot => Self::Hot,
            TierName::Warm => Self::Warm,
            TierName::Cold => Self::Cold,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct CacheArguments {
    #[command(subcommand)]
    pub action: CacheAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheAction {
    /// Show what the cache holds
    Info,
    /// Fetch what a snapshot needs and the hot tier lacks
    Warm(SpecArguments),
    /// Drop what was not used for longest
    Trim(CacheTrimArguments),
}

#[derive(Debug, Args)]
pub(crate) struct CacheTrimArguments {
    /// Bytes to leave: 0, 500M, 10G
    #[arg(long, value_name = "BYTES", value_parser = human::parse_size)]
    pub to: u64,
}

#[derive(Debug, Args)]
pub(crate) struct DomainArguments {
    #[command(subcommand)]
    pub action: DomainAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DomainAction {
    /// Create a domain, its keys wrapped by the key that the configuration names under [keys]
    Create {
        #[arg(value_name = "NAME")]
        name: String,
        /// Not encrypted, signed by this host, for everybody to deduplicate against
        #[arg(long)]
        public: bool,
    },
    /// List domains
    List,
    /// Begin a new key epoch, or wrap the keys by another key-encryption key
    Rotate {
        #[arg(value_name = "NAME")]
        name: String,
        /// File of the new key-encryption key; the domain's keys stay
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        kek: Option<PathBuf>,
        /// Seal under the new key what is stored already, too, and drop old keys once nothing needs them; finishes a
        /// rotation that is not finished before it begins another
        #[arg(long, conflicts_with = "kek")]
        repack: bool,
    },
    /// Destroy a domain's keys, and so all that is in it, forever
    Destroy {
        #[arg(value_name = "NAME")]
        name: String,
        /// The same name once more: nothing brings the domain back
        #[arg(long, value_name = "NAME")]
        yes_destroy: Option<String>,
    },
    /// Take a domain, or one of its refs, as it stands, though it is not what this host saw last
    Trust {
        #[arg(value_name = "NAME")]
        name: String,
        #[arg(value_name = "REF")]
        reference: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// Look at this tier only: hot, warm or cold
    #[arg(long, value_name = "TIER", value_parser = ["hot", "warm", "cold"])]
    tier: Option<String>,
    /// Leave no record in the bucket
    #[arg(long)]
    pub dry_run: bool,
}

impl DoctorArguments {
    /// Whether a tier is meant.
    pub(crate) fn names(&self, tier: &str) -> bool {
        self.tier.as_deref().is_none_or(|only| only == tier)
    }
}

#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// Where to; made if it is new
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    pub shell: clap_complete::Shell,
}
