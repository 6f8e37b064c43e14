"""Every key of the project, its default and what it means. The other configs hold only differences."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The default configuration: T2Diff at a realistic width on the embedded synthetic log."""
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict(
        dict(
            source="synthetic",  # synthetic | movielens | kuairand | table | tfds | prepared (by prepare.py)
            # folder of the raw files (table: the log file, or the folder of its files; tfds: the data_dir); unused by
            # synthetic
            path="",
            min_user_count=3,  # users with fewer behaviours are dropped (repeated with the next until stable)
            min_item_count=1,  # items with fewer behaviours are dropped
            categories=True,  # item categories enter the model where the log has them
            user_features=True,  # user features enter the model where the log has them
            content="",  # .npy float [rows, F]: row i holds the content vector of the item whose own id is i
            real_times=True,  # False: timestamps only order the behaviours (no lags, no time gaps)
            window=50,  # L, behaviours before a target
            protocol="user_holdout",  # user_holdout | leave_one_out | temporal
            test_users=0.2,  # user_holdout: share of users held out for the test
            validation_users=0.1,  # user_holdout: share of the remaining users held out for validation
            eval_positions=1,  # user_holdout: targets per test user
            validation_positions=1,  # user_holdout: targets per validation user
            first_target=50,  # user_holdout: targets (but tiled) lie at positions [min(first_target, n - 1), n - 1]
            validation_cut=0.8,  # temporal: quantile of all times after which behaviours validate
            test_cut=0.9,  # temporal: quantile of all times after which behaviours test
            # drawn: targets_per_user positions a user and epoch | every: each position once an epoch | tiled: as few
            # windows as hold the user's history (models that learn from every position of a window)
            training_targets="drawn",
            targets_per_user=10,  # drawn
            fixed_targets=False,  # True: the same targets in every epoch (the paper's preparation)
            prefetch=2,  # batches made ahead on a thread
        )
    )
    config.data.movielens = ConfigDict(dict(min_rating=0.0))  # ratings below are not behaviours
    config.data.kuairand = ConfigDict(
        dict(
            # which logs: standard_4_08_to_4_21, standard_4_22_to_5_08, random_4_22_to_5_08
            logs=("standard_4_08_to_4_21",),
            clicks_only=True,  # keep rows with is_click = 1
            tab=1,  # keep rows of this tab; -1: all
        )
    )
    config.data.table = ConfigDict(
        dict(
            user="user_id",  # column names of the log
            item="item_id",
            time="timestamp",
            item_file="",  # optional second file with one row per item (same item column)
            category="",  # column with the item's categories: in `item_file`, else in the log
            category_separator="|",
            title="",  # column with the item's title, same place
            user_file="",  # optional file with one row per user (same user column)
            user_columns=(),  # categorical user feature columns: in `user_file`, else in the log
        )
    )
    config.data.tfds = ConfigDict(dict(name="t2diff_log"))  # t2diff_log (our builder) or a prepared movielens/* dataset
    config.data.synthetic = ConfigDict(
        dict(seed=0, n_users=2000, n_items=1000, categories=12, mean_length=60)  # size of the made log
    )

    config.prepare = ConfigDict(  # what prepare.py holds in memory beside the ids
        dict(
            block_rows=1_000_000,  # rows of a file that are read at a time
            bucket_rows=8_000_000,  # behaviours that are sorted at a time; a user with more is sorted alone
        )
    )

    config.model = ConfigDict(
        dict(
            # t2diff | t2diff_causal | without a slot: sasrec | bert4rec | gru4rec | caser | mamba4rec | hstu | stosa |
            # contrast_vae | diffurec | two_tower | dat | of several interests: mind | comirec_sa | comirec_dr | drim |
            # mtmi
            name="t2diff",
            dim=64,  # D, width of an item representation
            category_dim=16,  # of which for categories (0 where the log has none)
            content_dim=16,  # of which for content vectors (0 where the log has none)
            user_feature_dim=8,  # width of one user feature's embedding
            sketch_dim=0,  # not of t2diff: width of the history sketch (item signatures); 0: none
            sketch_dropout=0.0,  # of its dimensions, in training: against learning pairs of items by heart
            init_sd=0.1,  # standard deviation of the embedding tables at the start
            # t2diff: transformer blocks of the session encoder; t2diff_causal: of the window's encoder (the session's
            # has one); without a slot: layers of the tower (contrast_vae one more; caser, towers, interests: not read)
            layers=2,
            heads=2,
            hidden=256,  # width inside the feed-forward layers (gru4rec: of its states)
            dropout=0.1,
            # share of the behaviours that training hides whole; not for t2diff, bert4rec, diffurec
            behaviour_dropout=0.0,
            # learned (counted from the newest behaviour) | rotary (relative): of models with attention over the window;
            # hstu has learned ones in any case
            positions="learned",
            vectors=1,  # sasrec to hstu: vectors of a user, learned as a mixture (loss.merge)
            # t2diff_causal, sasrec to hstu, contrast_vae, diffurec: user vectors are multiplied by it. Where a layer
            # norm holds their length, with 4 the softmax is soon as sharp as it should be: for short training
            user_scale=1.0,
            attend_self=True,  # t2diff: False: a position does not attend to itself (the paper's code)
            # From here to `slot`: of models with a slot; two_tower, dat and mtmi have sessions too.
            session_length=10,  # k
            session_gap=0,  # seconds that end a session, at most k behaviours; 0: the last k (needs real_times)
            activation_hidden=64,  # hidden width of the activation unit of the target attention
            user_tower="ffn",  # t2diff: ffn | concat: what makes e_u of [h_l, h_s]
            item_tower="identity",  # identity | dense: what makes the scored item vector of e(i)
            # What takes the next item's place: diffusion | empty; to compare, with t2diff_causal also learned (vectors
            # that are the same for everyone) | regressor | vae | gan | diffurec | oracle (the next item itself, at the
            # test as well: a bound, not a retriever)
            slot="diffusion",
            # compute dtype: float32 | bfloat16 (parameters, softmax and losses stay float32). How exact a product of
            # float32 is on a GPU or TPU is the device's default, or what JAX_DEFAULT_MATMUL_PRECISION says
            dtype="float32",
            row_multiple=8,  # item tables are filled up to a multiple of this, so that they shard evenly
        )
    )
    config.model.bert4rec = ConfigDict(dict(masked=0.2))  # share of the places masked in training, beside the last
    config.model.caser = ConfigDict(dict(last=5, horizontal=16, vertical=4))  # behaviours it sees; filters of a kind
    # Numbers a dimension keeps of the past; places that the convolution sees; inner width over model.dim; places whose
    # states are held at a time (on a CPU few stay in its cache; 0: all at once).
    config.model.mamba = ConfigDict(dict(state=32, conv=4, expand=2, chunk=4))
    config.model.two_tower = ConfigDict(dict(temperature=0.05))  # scores are cosines over it; 0: inner products
    config.model.dat = ConfigDict(  # its table of users is learned whole at every step, also with optim.lazy_rows
        dict(
            behaviours=True,  # False: a user is an id and features alone
            unknown_users=0.1,  # share of users whose id is hidden in training: what stands for ids never met
            mimic=0.5,  # weight of either mimic loss
            alignment=1.0,  # weight of the category alignment (where items have categories)
        )
    )
    config.model.interests = ConfigDict(  # mind, comirec_sa, comirec_dr, drim, mtmi
        dict(
            number=4,  # K, at most so many vectors of a user
            last=20,  # not mtmi: behaviours that interests are made of, the latest; 0: all of the window
            iterations=3,  # of routing
            label_power=0.0,  # mind, drim: exponent of label-aware attention; 0: its limit, the nearest interest alone
            # drim: what keeps interests apart: cosine | correlation | distance
            diversity="cosine",
            diversity_weight=0.1,  # drim, mtmi: weight beside the softmax
            # vectors are left alone below this cosine (mtmi), beyond this distance of directions (drim with distance)
            margin=0.5,
        )
    )
    # Weights of divergence and contrast beside the cross-entropy; temperature of the contrast.
    config.model.contrast_vae = ConfigDict(dict(kl_weight=0.001, contrast_weight=0.1, temperature=0.2))
    # Of models with a slot; diffurec reads schedule, steps, scale, rate, sampler, sampler_steps, step_dim, scale_decay
    # and mixing.
    config.diffusion = ConfigDict(
        dict(
            schedule="exponential",  # exponential | linear | logarithmic
            steps=50,  # T
            scale=0.01,  # a of beta_s = a exp(b s / T); the other schedules have the same first and last beta
            rate=4.5,  # b
            filters=(32, 32, 64, 64),  # U-Net filters, one entry per level
            step_dim=32,  # width of the step embedding
            head_hidden=128,  # t2diff_causal: width of the network that denoises one position
            head_blocks=2,  # t2diff_causal: its residual blocks
            target="drift",  # what is generated: drift (from the last behaviour to the next) | item (the next itself)
            # vector: the network's output is z_0, learned by its square error (the paper) | catalogue (t2diff_causal;
            # diffusion and regressor): it names an item, learned by cross-entropy; z_0 leads to the mean of the items
            estimate="vector",
            weight=1.0,  # lambda, weight of the diffusion loss
            slot_training="sampled",  # sampled: as at inference | denoised: from the noised true drift (the paper)
            # True: generator and towers learn each by its own loss (the paper) | False (t2diff_causal): as one network
            stop_gradient=True,
            sampler="ddim",  # ddim | ddpm
            sampler_steps=1,  # estimator calls of the reverse process (ddpm: must be `steps`)
            # t2diff: known drifts are held at their noised true values during the reverse process (diffurec always
            # holds them; at r = T, where the only call of sampler_steps=1 is made, they are all but noise)
            clamp_known=True,
            # M, intents per user, a user vector each. t2diff_causal learns them as a mixture (loss.merge); t2diff, and
            # slot_training=denoised, learn one
            samples=1,
            # Noise that a generated item is made of. request: drawn anew for every request | intent (t2diff_causal):
            # the same for everyone, so that each of M intents comes to stand for something (slot regressor: M fixed
            # vectors tell its intents apart)
            noise="request",
            scale_decay=0.99,  # decay of the running drift scale
            kl_weight=1.0,  # slot vae: weight of the divergence beside the square error
            mixing=0.001,  # diffurec, slot or model: mean and deviation of the weight with which noised items mix in
        )
    )
    config.loss = ConfigDict(
        dict(
            # full softmax on one CPU device: targets scored at a time (200 is fastest); 0, and elsewhere: all at once
            chunk=0,
            # full softmax: items scored at a time, for catalogues whose [targets, items] does not fit; 0: all at once
            block=0,
            # Shared negatives of a step: so many uniform ones, so many from its own windows; both 0: softmax over the
            # whole catalogue; negatives=-1: as `auto` says. From windows alone models collapse: items that are rarely
            # met are never pushed away.
            negatives=-1,
            batch_negatives=0,
            frequency_decay=0.05,  # with batch_negatives: weight of the newest draw in how often an item is drawn
            window_negatives=True,  # with sampled negatives: the window's own items are all negatives of their row
            # True: no softmax holds the items that the window shows up to its position (but a target that repeats); for
            # logs in which nobody takes an item twice
            exclude_seen=False,
            seen_before=4096,  # with exclude_seen: so many behaviours before the window are left out too, the latest
            label_smoothing=0.0,
            # How several vectors of a user make one probability (eval.merge ranks by it): softmax_mean: mean of their
            # softmaxes | logsumexp: softmax of log sum_m exp of their scores, a vector weighs as much as its sum | max:
            # an item is scored by the vector that likes it best
            merge="softmax_mean",
        )
    )
    config.cold = ConfigDict(  # prerank.py: a network, in float32, that re-ranks what a trained retriever found
        dict(
            requests=60_000,  # of training users, whose candidates are logged
            candidates=200,  # M: so many are logged, and re-ranked at most
            negatives=50,  # of the candidates, drawn for each request of a step
            cutoffs=(20, 50, 100, 200),  # M: so many are re-ranked, a row each
            hidden=(128, 64),  # widths of the layers
            keep=(5, 3),  # then trained again with so many groups of features, those with the greatest gates
            steps=2000,  # at most: what was best on later requests stays
            later=3000,  # validation targets, at most, that say when to stop
            check_every=100,  # steps between looks at these
            batch_size=64,  # requests a step
            learning_rate=1e-3,
        )
    )
    config.optim = ConfigDict(
        dict(
            learning_rate=1e-3,
            warmup=100,  # steps of linear warm-up
            decay="cosine",  # cosine | constant, after the warm-up
            decay_steps=0,  # step at which the cosine ends; 0: train.steps
            kernels="adam",  # adam | muon: what learns the matrices inside layers; the rest is Adam's
            tables="adam",  # adam | adagrad (one number a row in place of two rows): what learns the item tables
            table_rate=0.02,  # learning rate of adagrad, with the same warm-up and decay
            weight_decay=0.0,
            clip_norm=1.0,  # global gradient norm; 0: off
            ema=0.0,  # decay of the averaged weights that evaluation uses; 0: off
            # True: a step moves (and decays, averages) only the rows of item tables that its batch names, so that its
            # cost does not grow with the catalogue; needs drawn negatives (loss.negatives=-1 sets it)
            lazy_rows=False,
        )
    )
    config.train = ConfigDict(
        dict(
            steps=3000,
            batch_size=256,  # over all devices
            log_every=50,
            eval_every=500,  # validation; also the checkpoint that may become the best
            checkpoint_every=500,
            keep=2,  # latest checkpoints kept, beside the best one
            compilation_cache="",  # folder of XLA's persistent cache; empty: off
        )
    )
    config.eval = ConfigDict(
        dict(
            batch_size=256,
            ks=(2, 5, 10, 20, 50, 100),
            select="ndcg@10",  # validation metric that chooses the best checkpoint
            noise_keys=5,  # test metrics are reported over so many noise keys; 1 where nothing is drawn
            exclude_seen=False,  # True: all earlier items of the user leave the ranking
            merge="max",  # max | softmax_mean | logsumexp: how M user vectors make one score
            block=4096,  # item rows scored at a time (on a CPU small ones stay in its cache)
            # What the search for recommendations reads whole: float32 (exact) | bfloat16 (on Hopper GPUs by a kernel of
            # its own, for one vector a user or merge=max and a width of a multiple of 64 up to 256) | int8 (a scale per
            # row): a copy beside the table; what these find is scored in float32. Ranks, and with them the metrics, are
            # always exact.
            search="float32",
            search_recall=1.0,  # below 1: the best are searched by approx_max_k (of use on TPUs), with this recall
            popularity=True,  # print the popularity baseline beside the model
        )
    )
    # What loss.negatives=-1 comes to: 0 (the softmax over all items) up to so many items on this kind of device, and
    # where another setting needs it; else so many negatives and optim.lazy_rows=True.
    config.auto = ConfigDict(
        dict(
            # cpu: with 3,200 targets a step 5,000 items take .9 of the time of drawn ones, 10,000 1.3, 50,000 5.2; with
            # 256 targets they are even at 20,000 (benchmarks/softmax_crossover.py). gpu (H200, 3,200 targets): 20,000
            # take .7, 50,000 .9, 100,000 1.1. tpu: not measured
            full_cpu=10_000,
            full_gpu=75_000,
            full_tpu=75_000,
            negatives=4096,
        )
    )
    config.dry_run = ConfigDict(  # what train.py --dry_run takes the log to be; it reads none
        dict(
            n_items=1000,
            categories=0,  # different ones of items; 0: none
            categories_per_item=1,
            content=0,  # width of content vectors; 0: none
            user_features=(),  # different values of each
            n_users=1000,  # dat: rows of its table of users
            seen=256,  # earlier items of a user, where evaluation excludes them, or training those before the window
        )
    )
    config.mesh = ConfigDict(dict(data=-1, model=1))  # devices per axis; -1: all that are left
    return config
