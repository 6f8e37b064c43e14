"""Makers of small raw files and of the configuration that reads them."""

import pathlib

from configs import base
from t2diff_jax.config import DataConfig
from t2diff_jax.config_values import from_mapping

GENRES = 19  # flags of a line in u.item


def data_config(source: str, path: object = "", **changes: object) -> DataConfig:
    """The default data configuration without count filters; `movielens__min_rating=4.0` sets a nested key."""
    config = base.get_config()
    config.data.update(source=source, path=str(path), min_user_count=1, min_item_count=1)
    for key, value in changes.items():
        *sections, name = key.split("__")
        section = config.data
        for part in sections:
            section = section[part]
        section[name] = value
    return from_mapping(config).data


def write(path: pathlib.Path, *lines: str, encoding: str = "utf-8") -> pathlib.Path:
    """Writes lines, each ended by a newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\n" for line in lines).encode(encoding))
    return path


def make_1m(folder: pathlib.Path) -> pathlib.Path:
    """Two users, three rated films and one that nobody rated, in the format of MovieLens 1M."""
    write(folder / "ratings.dat", "2::30::5::300", "1::20::4::200", "1::10::3::100", "1::30::5::200", "2::10::2::100")
    films = ("10::Heat: Part 1 (1995)::Action|Crime", "20::Misérables, Les (1995)::Drama", "30::Up (2009)::Animation")
    write(folder / "movies.dat", *films, "40::Unseen (2000)::Western", encoding="latin-1")
    write(folder / "users.dat", "1::F::1::10::48067", "2::M::56::16::70072")
    return folder


def make_100k(folder: pathlib.Path) -> pathlib.Path:
    """Two users and two films in the format of MovieLens 100K."""
    write(folder / "u.data", "1\t10\t3\t100", "2\t10\t4\t50", "1\t20\t5\t90")
    flags = ["0"] * GENRES
    drama = "|".join("1" if g == 8 else flag for g, flag in enumerate(flags))
    unknown = "|".join("1" if g == 0 else flag for g, flag in enumerate(flags))
    films = (f"10|Misérables, Les (1995)|01-Jan-1995||http://x|{drama}", f"20|unknown||||{unknown}")
    write(folder / "u.item", *films, encoding="latin-1")
    write(folder / "u.user", "1|24|M|technician|85711", "2|17|F|student|94043")
    return folder


def make_movielens_csv(folder: pathlib.Path) -> pathlib.Path:
    """One user and two films in the format of the later MovieLens releases."""
    write(folder / "ratings.csv", "userId,movieId,rating,timestamp", "7,10,3.5,100", "7,20,0.5,90")
    write(
        folder / "movies.csv",
        "movieId,title,genres",
        '10,"Misérables, Les (1995)",Drama|War',
        "20,Up (2009),(no genres listed)",
    )
    return folder


KUAIRAND_COLUMNS = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)


def kuairand_row(user: object, video: object, time_ms: object, click: object = 1, tab: object = 1) -> str:
    """One line of a KuaiRand log."""
    return f"{user},{video},20220408,1200,{time_ms},{click},0,0,0,0,0,1,10,20,0,0,0,0,{tab}"


def make_kuairand(folder: pathlib.Path, release: str = "27k") -> pathlib.Path:
    """Two users and three videos in the schema of KuaiRand, the log in two parts."""
    log = f"log_standard_4_08_to_4_21_{release}_part"
    first = (kuairand_row(0, 5, 9_999), kuairand_row(0, 6, 8_000, click=0), kuairand_row(0, 7, 7_000, tab=2))
    write(folder / f"{log}1.csv", KUAIRAND_COLUMNS, *first)
    write(folder / f"{log}2.csv", KUAIRAND_COLUMNS, kuairand_row(3, 0, 2_000), kuairand_row(0, 0, 3_500))
    columns = (
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
        "music_id,music_type,tag"
    )
    rows = [f"{v},1,NORMAL,2022-01-01,x,1,2,3,4,5,6,{tag}" for v, tag in ((0, '"12,65"'), (5, "8"), (6, "9"), (7, ""))]
    write(folder / f"video_features_basic_{release}.csv", columns, *rows)
    users = (
        "user_id,user_active_degree,is_live_streamer,onehot_feat0,onehot_feat1",
        "0,full_active,0,1,",
        "3,high,1,0,4",
    )
    write(folder / f"user_features_{release}.csv", *users)
    return folder
